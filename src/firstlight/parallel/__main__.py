"""`python -m firstlight.parallel`, which the first rank runs for each of the others."""

from __future__ import annotations

import sys

from firstlight.parallel.follower import main

sys.exit(main())
