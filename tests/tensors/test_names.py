"""The examples in names.py are what the table does."""

import re

from vllm_videollava.tensors import names


def test_the_worked_examples():
    examples = re.findall(r"^    \S.* (model\.\S+)\n((?:        \S+\n)+)", names.__doc__, re.MULTILINE)
    assert len(examples) == 3
    for given, steps in examples:
        assert names.TENSOR_NAMES.apply_list([given]) == [steps.split()[-1]]
