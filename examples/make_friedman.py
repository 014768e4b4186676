"""Makes examples/friedman.csv, a table for examples/friedman.yaml.

    .venv/bin/python examples/make_friedman.py

Ten columns uniform in [0, 1], of which five count, and the number

    y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise, normal with standard deviation 1

(J. H. Friedman, "Multivariate Adaptive Regression Splines", Annals of Statistics 19 (1991), section 4.3). The noise alone is
about 4 % of the variance of y, so no model has an R2 much above 0.96 on rows that it has not seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("friedman.csv")
ROWS, COLUMNS = 4_000, 10


def main() -> None:
    """Writes 4,000 rows: x1 to x10 and y, with six decimals."""
    rng = np.random.default_rng(0)
    x = rng.random((ROWS, COLUMNS))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y += rng.standard_normal(ROWS)
    names = [f"x{column}" for column in range(1, COLUMNS + 1)]
    np.savetxt(FILE, np.column_stack([x, y]), "%.6f", ",", header=",".join([*names, "y"]), comments="")
    print(f"{FILE}: {ROWS:,} rows, y of variance {y.var():.1f}")


if __name__ == "__main__":
    main()
