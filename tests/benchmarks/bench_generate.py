"""Wall time and peak memory of `lsdm-generate`, unguided and guided: python tests/benchmarks/bench_generate.py"""

import argparse
import subprocess
import sys
import tempfile
import time

RUN = "import sys, resource; from lsdm_diffusers.generate import main; main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_inference_steps", default="25")
    args = parser.parse_args()
    seconds = {}
    guided = ["--malignancy", "malignant", "--lobulation", "4", "--spiculation", "4", "--texture", "5"]
    for name, extra in (("unguided", []), ("guided", guided)):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-c", RUN, "--output", folder, "--num_inference_steps", args.num_inference_steps, *extra]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.1f} s, peak memory {int(printed.split()[-1]) / 2**20:.2f} GiB")
    print(f"guided / unguided {seconds['guided'] / seconds['unguided']:.2f}")


if __name__ == "__main__":
    main()
