import subprocess
from pathlib import Path

from vtriune.monitor import versions as module


def test_the_commit_is_that_of_this_source_tree() -> None:
    here = Path(module.__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    commit = module.versions(threads=1)["commit"]
    if head.returncode:  # a source archive without its repository
        assert commit is None
    else:
        assert str(commit).removesuffix("-dirty") == head.stdout.strip()
