"""Sharded parameters: two processes under FSDP2 do what one does with the whole of them."""

import subprocess
import sys

import pytest
import torch.distributed

WORKER = """
import os, sys, warnings
warnings.filterwarnings("ignore")
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from extensions.optim import AdEMAMix

rank, store, options = int(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
SETTINGS = dict(lr=1e-2, weight_decay=0.1, alpha=4.0, alpha_warmup=9, beta3_warmup=7)

def model(sharded):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()  # rows that 2 does not divide
    return fully_shard(net, mesh=mesh) if sharded else net

def train(net, optimizer, seeds):
    for seed in seeds:
        x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

def full(t):
    return t.full_tensor() if isinstance(t, DTensor) else t

whole = model(False)
oracle = AdEMAMix(whole.parameters(), **SETTINGS, foreach=False)
train(whole, oracle, range(6))

net = model(True)
optimizer = AdEMAMix(net.parameters(), **SETTINGS, **options)
train(net, optimizer, range(3))
assert all(isinstance(optimizer.state[p]["exp_avg_slow"], DTensor) for p in net.parameters())

# Through the whole state, as a checkpoint has it, into another sharded model.
state = get_optimizer_state_dict(net, optimizer, options=StateDictOptions(full_state_dict=True))
state = [state]
dist.broadcast_object_list(state, src=0)
again = model(True)
again.load_state_dict(net.state_dict())
resumed = AdEMAMix(again.parameters(), **SETTINGS, **options)
set_optimizer_state_dict(again, resumed, state[0], options=StateDictOptions(full_state_dict=True))
train(again, resumed, range(3, 6))

for p, q in zip(whole.parameters(), again.parameters()):
    torch.testing.assert_close(p, full(q), rtol=0, atol=1e-13)
    for name, value in oracle.state[p].items():
        torch.testing.assert_close(value, full(resumed.state[q][name]), rtol=0, atol=1e-13)
shown, expected = resumed.diagnostics()[0], oracle.diagnostics()[0]
assert all(abs(shown[k] - expected[k]) < 1e-9 for k in expected), (shown, expected)
dist.barrier()
print("same", flush=True)
os._exit(0)  # gloo's threads do not always outlive the interpreter in good order
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_two_processes_under_fsdp2(options, tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), repr(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            out, err = worker.communicate(timeout=300)
            assert worker.returncode == 0, err
            assert out.strip().endswith("same")
    finally:
        for worker in workers:
            worker.kill()
