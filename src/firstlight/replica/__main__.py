"""`python -m firstlight.replica`, which the server runs for each replica."""

from __future__ import annotations

import sys

from firstlight.replica.process import main

sys.exit(main())
