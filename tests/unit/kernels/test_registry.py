"""Which implementation serves which op."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.ops import OP_NAMES
from qwell.kernels.registry import build_fused_ops, build_ops, describe

MODEL_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", MODEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("device", "chosen"),
    [
        ("cpu", {"rms_norm": "native", "sample": "native"}),
        ("cuda", dict.fromkeys(OP_NAMES, "triton")),
        ("meta", {"rms_norm": "reference", "sample": "reference"}),
    ],
)
def test_choice_follows_the_device(device, chosen, dtype):
    families = describe(build_ops(torch.device(device), dtype))
    assert families.keys() == set(OP_NAMES)
    assert {op: families[op] for op in chosen} == chosen


def test_native_attention_is_for_float32_activations():
    for dtype in MODEL_DTYPES:
        families = describe(build_ops(torch.device("cpu"), dtype))
        expected = "native" if dtype == torch.float32 else "reference"
        assert families["rope"] == families["attention"] == expected


def test_chosen_ops_compute():
    ops = build_ops(torch.device("cpu"), torch.float32)
    x = torch.tensor([[3.0, 4.0]])
    y, s = ops.rms_norm(x, torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(y, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)
    assert s is x


def double(gate_up):
    return gate_up * 2


def test_an_override_serves_its_op_alone():
    ops = build_ops(torch.device("cpu"), torch.float32, {"silu_mul": double})
    assert ops.silu_mul is double
    others = describe(build_ops(torch.device("cpu"), torch.float32))
    assert describe(ops) == others | {"silu_mul": f"{__name__}:double"}


def test_an_override_may_name_a_family():
    device = torch.device("cuda")
    families = describe(build_ops(device, torch.bfloat16, {"linear": "reference"}))
    assert families.pop("linear") == "reference"
    assert set(families.values()) == {"triton"}


def test_blas_serves_where_bits_may_depend_on_the_batch():
    device = torch.device("cuda")
    families = describe(build_ops(device, torch.bfloat16, batch_invariant=False))
    assert families.pop("linear") == "blas"
    assert set(families.values()) == {"triton"}
    named = build_ops(device, torch.bfloat16, {"linear": "triton"}, batch_invariant=False)
    assert describe(named)["linear"] == "triton"


def test_fused_ops_are_for_gpus_and_never_in_the_way_of_an_override():
    assert build_fused_ops(torch.device("cpu"), torch.float32) is None
    for op in ("linear", "rms_norm", "attention", "rope", "silu_mul"):
        assert build_fused_ops(torch.device("cuda"), torch.bfloat16, {op: "reference"}) is None


@pytest.mark.parametrize(
    ("op", "family", "there"),
    [("rms_norm", "triton", "native, reference"), ("linear", "cublas", "native, reference")],
)
def test_a_family_that_does_not_serve_is_refused(op, family, there):
    with pytest.raises(KernelError, match=rf"{op}: .* in '{family}' .* there is {there}"):
        build_ops(torch.device("cpu"), torch.float32, {op: family})


def test_an_override_without_a_name_is_described_by_its_class():
    override = functools.partial(double)
    ops = build_ops(torch.device("cpu"), torch.float32, {"silu_mul": override})
    assert describe(ops)["silu_mul"] == "functools:partial"


def test_unknown_op_is_refused_with_the_names_that_exist():
    with pytest.raises(KernelError, match=r"no op named swiglu; the ops are embedding, rms_norm"):
        build_ops(torch.device("cpu"), torch.float32, {"swiglu": double})


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=str)
def test_unserved_dtype_is_refused(dtype):
    with pytest.raises(KernelError, match=r"embedding: no implementation for torch\.\w+ on cpu"):
        build_ops(torch.device("cpu"), dtype)


def test_an_implementation_that_cannot_be_imported_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwell.kernels.triton.rms_norm", None)
    with pytest.raises(KernelError, match=r"rms_norm: cannot load qwell\.kernels\.triton"):
        build_ops(torch.device("cuda"), torch.float32)


def test_cpu_models_do_not_import_triton():
    program = (
        "import sys, torch\n"
        "from qwell.kernels.registry import build_ops\n"
        "build_ops(torch.device('cpu'), torch.float32)\n"
        "sys.exit('triton' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-I", "-c", program], check=False)
    assert run.returncode == 0
