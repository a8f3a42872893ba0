"""Runs the conformance check on kernels in Triton, which Triton interprets.

TRITON_INTERPRET=1 must be set before Triton is imported, hence a process of its own. It reads
{op: [beginnings of names of cases]} from its argument, and writes the kernels that the device has and
then each report as a line of JSON.
"""

from __future__ import annotations

import json
import sys

from firstlight.backends import open_device
from firstlight.verify import conformance
from firstlight.verify.cases import cases_of


def main(wanted: dict[str, list[str]]) -> None:
    backend = open_device("torch:cpu", check_kernels=False)
    kernels = [each for each in backend.kernels() if each.name.startswith("paged")]
    preferred = {op: next(k.name for k in backend.kernels() if k.op == op) for op in wanted}
    print(json.dumps({"preferred": preferred, "identity": backend.identity()}))
    for op, names in wanted.items():
        of_op = [each for each in kernels if each.op == op]
        for case in cases_of(op):
            if not case.name.startswith(tuple(names)):
                continue
            for report in conformance._check_case(backend, of_op, case):
                content = {"kernel": f"{op}/{report.kernel}", "case": case.name}
                print(json.dumps({**content, "passed": report.passed, "says": str(report)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
