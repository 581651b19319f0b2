"""How long one training step of a U-Net takes, ours beside PyTorch's.

    python examples/benchmarks/unet_step.py

A step is noise ε, net(x, t), the loss ‖net(x, t) - ε‖², its gradient and Adam, in float32. PyTorch
runs eagerly with its fused Adam, once with images in channels-last order and once in its own. All
start from one θ; before anything is timed, their outputs and whole gradients must agree.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from harness import Disagreement, compare
from report import machine, table, write_json
from unet_ours import WORKLOADS

HERE = Path(__file__).parent
TORCH_HINT = "this benchmark needs PyTorch; install it with: pip install -e '.[bench]'"


def main() -> None:
    """Compare on every workload, and print what each takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=_positive, default=9, help="turns of each contender")
    parser.add_argument("--threads", type=_positive, default=2, help="of each contender")
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    given = parser.parse_args()
    if find_spec("torch") is None:
        print(TORCH_HINT, file=sys.stderr)
        raise SystemExit(4)

    about, comparisons = machine(given.threads, ("scratchgen", "numpy", "torch")), []
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    for workload in [given.only] if given.only else WORKLOADS:
        commands = _commands(workload)
        try:
            compared = compare(workload, commands, given.rounds, given.threads)
        except Disagreement as problem:
            raise SystemExit(f"{workload}: {problem}") from problem
        print(f"\n{table(compared)}", flush=True)
        comparisons.append(compared)
    if given.json:
        write_json(given.json, about, comparisons)


def _commands(workload: str) -> dict[str, list[str]]:
    torch = [str(HERE / "unet_torch.py"), workload]
    return {
        "scratchgen": [str(HERE / "unet_ours.py"), workload],
        "torch channels_last": [*torch, "channels_last"],
        "torch contiguous": [*torch, "contiguous"],
    }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    main()
