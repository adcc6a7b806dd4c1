"""Which modules pytest does not import for their doctests: those whose engine isn't installed here."""

from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if find_spec("verl") is None:
    needless = ("agent", "dataset", "engine", "main", "reward", "trainer")
    collect_ignore_glob = [f"src/vtriune/integrations/verl/{name}.py" for name in needless]
