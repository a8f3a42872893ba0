"""How hypothesis searches: the same examples each time where CI is set, so that a change is judged
by what it changes; new ones each time elsewhere, where somebody can look at what they find."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "explore")
