"""Which modules pytest does not import for their doctests: those whose engine isn't installed here."""

from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if find_spec("swift") is None:
    collect_ignore_glob.append("src/vtriune/integrations/ms_swift.py")
