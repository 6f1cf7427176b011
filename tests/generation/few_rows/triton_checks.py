"""Run the Triton kernel of `few_row_linear` without a GPU, in a process of its own. Writes "right" and "compiled".

    TRITON_INTERPRET=1 python triton_checks.py interpret
    python triton_checks.py compile

The first runs the kernel in Triton's interpreter on CPU tensors and compares it with float64. The second compiles it
for NVIDIA's GPUs of several generations, with the assembler that comes with Triton.
"""

import sys

import torch
from torch.nn import functional as F


# Not bfloat16, whose bits the interpreter multiplies as integers (Triton 3.7).
DTYPES = (torch.float16, torch.float32)
SIZES = ((1, 16, 32), (2, 100, 300), (17, 48, 512), (40, 65, 257), (70, 3100, 40))  # rows, outputs, inputs


def interpret():
    from janus_hf.generation.kernels.few_rows.few_row_kernel import launch

    every_bit_pattern = torch.arange(256, dtype=torch.uint8)
    finite = every_bit_pattern[every_bit_pattern.view(torch.float8_e4m3fn).float().isfinite()]
    for dtype in DTYPES:
        for rows, outputs, inputs in SIZES:
            generator = torch.Generator().manual_seed(rows)
            x = torch.randn(rows, inputs, generator=generator).to(dtype)
            scale = torch.rand(outputs, generator=generator)
            bias = torch.randn(outputs, generator=generator).to(dtype) if rows % 2 else None
            picks = torch.randint(len(finite), (outputs, inputs), generator=generator)
            integers = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
            for weight, values in ((integers, integers), (finite[picks], finite[picks].view(torch.float8_e4m3fn))):
                y = torch.full((rows, outputs), float("nan"), dtype=dtype)
                launch(x, weight, scale, bias, y)
                expected = F.linear(x.double(), values.double()) * scale.double()
                expected = expected if bias is None else expected + bias.double()
                error = ((y.double() - expected).abs().max() / expected.abs().max()).item()
                assert error < 4 * torch.finfo(dtype).eps, (dtype, rows, outputs, inputs, weight.dtype, error)
    sys.stdout.write("right")


def compile_for_gpus():
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from janus_hf.generation.kernels.few_rows.few_row_kernel import _linear, block_sizes

    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    for capability in (80, 89, 90):
        for dtype, weight in (
            (torch.bfloat16, "i8"),
            (torch.bfloat16, "u8"),
            (torch.float16, "i8"),
            (torch.float32, "u8"),
        ):
            for rows, outputs in ((2, 2048), (2, 4096), (64, 4096)):
                block_m, block_n, block_k, stages = block_sizes(rows, outputs, dtype)
                pointers = dict.fromkeys(("x", "bias", "y"), f"*{names[dtype]}")
                types = {"weight": f"*{weight}", "scale": "*fp32", "M": "i32", "N": "i32", "K": "i32"} | pointers
                constants = {"IS_FLOAT8": weight == "u8", "HAS_BIAS": False}
                constants |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
                signature = {name: types.get(name, "constexpr") for name in _linear.arg_names}
                source = ASTSource(_linear, signature, constexprs=constants)
                options = {"num_warps": 4, "num_stages": stages}
                compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
                assert compiled.asm["cubin"]
                assert compiled.metadata.shared <= 99 * 1024  # what a block may use on RTX 30 and 40
    sys.stdout.write("compiled")


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_gpus}[sys.argv[1]]()
