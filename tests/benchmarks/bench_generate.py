"""Wall time and peak memory of `lsdm-generate`, unguided and guided.

    python tests/benchmarks/bench_generate.py

Start-up is included. The two kinds alternate; the medians leave out the first run of each.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

RUN = (
    "import sys, resource; from lsdm_diffusers.generate import main; main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)
KIB_IN_GIB = 2**20
GUIDED = ["--malignancy", "malignant", "--lobulation", "4", "--spiculation", "4", "--texture", "5"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_inference_steps", default="25", help="denoising steps")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each kind")
    args = parser.parse_args()
    runs: dict[str, list[str]] = {"unguided": [], "guided": GUIDED}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory = {}
    for repeat in range(args.repeats + 1):
        for name, features in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-c", RUN, "--output", folder, *features]
                command += ["--num_inference_steps", args.num_inference_steps]
                start = time.perf_counter()
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                if repeat:  # the first reads the libraries from disk
                    seconds[name].append(time.perf_counter() - start)
                memory[name] = int(printed.split()[-1]) / KIB_IN_GIB
    for name in runs:
        print(f"{name}: {statistics.median(seconds[name]):.1f} s, peak memory {memory[name]:.2f} GiB")
    ratios = [guided / plain for guided, plain in zip(seconds["guided"], seconds["unguided"], strict=True)]
    print(f"guided / unguided {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
