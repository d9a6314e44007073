"""Wall time and peak memory of `lsdm-generate`, unguided and guided: python tests/benchmarks/bench_generate.py

Start-up included; alternating, medians after a first run of each.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

RUN = "import sys, resource; from lsdm_diffusers.generate import main; main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_inference_steps", default="25")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    guided = ["--malignancy", "malignant", "--lobulation", "4", "--spiculation", "4", "--texture", "5"]
    runs = {"unguided": [], "guided": guided}
    seconds, memory = {name: [] for name in runs}, {}
    for repeat in range(args.repeats + 1):
        for name, extra in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                command = [
                    sys.executable,
                    "-c",
                    RUN,
                    "--output",
                    folder,
                    "--num_inference_steps",
                    args.num_inference_steps,
                    *extra,
                ]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                if repeat:  # the first reads the libraries from disk
                    seconds[name].append(time.perf_counter() - start)
                memory[name] = int(printed.split()[-1]) / 2**20
    for name in runs:
        print(f"{name}: {statistics.median(seconds[name]):.1f} s, peak memory {memory[name]:.2f} GiB")
    ratios = [guided / plain for guided, plain in zip(seconds["guided"], seconds["unguided"], strict=True)]
    print(f"guided / unguided {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
