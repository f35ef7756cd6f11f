"""Makes `kkt` and `problems` importable: test folders are no packages, and pytest does not put them on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
