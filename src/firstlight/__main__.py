"""`python -m firstlight`."""

import sys

from firstlight.cli.main import main

sys.exit(main())
