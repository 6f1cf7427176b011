"""`fsdp_on_cpu.py ARGUMENT ...`, run by a launcher with FSDP: `janus-hf` with accelerate's FSDP2 on the CPU.

accelerate leaves FSDP out silently on machines without GPUs. Everything of it runs on the CPU over gloo, though, once
it takes the processes for processes with GPUs.
"""

import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from janus_hf_cli import main


torch.set_num_threads(1)
start = PartialState.__init__


def start_as_with_gpus(self, *args, **kwargs):
    start(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = start_as_with_gpus
sys.exit(main())
