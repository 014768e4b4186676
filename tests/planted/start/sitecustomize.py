"""What Python runs as it starts, where this folder is on its path: the process gets the defect that a test planted."""

from __future__ import annotations

import os

from tests.planted.defect import VARIABLE, plant
from tests.planted.defects import DEFECTS

plant(DEFECTS[os.environ[VARIABLE]].changes)
