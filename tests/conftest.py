"""What holds for every test: hypothesis keeps no deadlines, since verdicts must not depend on the machine's load."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("vtriune", deadline=None)
settings.load_profile("vtriune")
