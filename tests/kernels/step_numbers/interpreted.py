"""Runs the kernel on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

from tests.kernels.step_numbers.cases import PLACES, differing, numbers, stands


def main() -> None:
    failed = []
    for places in PLACES:
        for stand in stands(places):
            found, expected = (numbers(places, stand, device="cpu", implementation=i) for i in ("triton", "reference"))
            wrong = differing(found, expected)
            if wrong:
                failed.append(f"{places} {stand}: {wrong}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
