#!/usr/bin/env bash
# Makes one folder, under 60 MiB, with all that a machine with a GPU needs, and prints the command.
#
#     benchmarks/gpu_pack.sh DATA_DIR FOLDER [MINUTES]
#
# DATA_DIR has MNIST/raw/ in it. FOLDER must not exist yet. The machine needs torch, torchvision,
# NumPy, and no network: the other packages travel as wheels. They are for this machine's Python,
# unless PYTHON_THERE says otherwise, such as 3.12. PYTHON is the one to pack with.
set -euo pipefail
data=$(realpath "$1")
folder=$(realpath -m "$2")
minutes=${3:-9}
python=${PYTHON:-python3}
tree=$(realpath "$(dirname "$0")/..")
limit=60

if [ -e "$folder" ]; then
    echo "gpu_pack.sh: error: $folder exists: name another" >&2
    exit 1
fi
mkdir -p "$folder/data/MNIST/raw" "$folder/wheels"

# The tree as it is: what git tracks, and what it does not ignore; without pictures.
git -C "$tree" ls-files -z --cached --others --exclude-standard -- . ':!*.png' |
    tar -C "$tree" --ignore-failed-read --null -T - -c 2>/dev/null |
    tar -C "$folder" -x

for kind in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
    gzip -9 -c "$data/MNIST/raw/$kind-ubyte" >"$folder/data/MNIST/raw/$kind-ubyte.gz"
done

"$python" "$tree/benchmarks/gpu_packages.py" >"$folder/wheels/list.txt"
"$python" -m pip download -qq --no-deps --only-binary :all: \
    ${PYTHON_THERE:+--python-version "$PYTHON_THERE"} \
    -d "$folder/wheels" -r "$folder/wheels/list.txt"

size=$(du -sm "$folder" | cut -f1)
if [ "$size" -ge "$limit" ]; then
    echo "gpu_pack.sh: error: $folder has $size MiB, which is not under $limit" >&2
    exit 1
fi
echo "$folder has $size MiB. The command, in that folder there; results go to \$OUT if it is set:"
echo
echo "gunzip -kf data/MNIST/raw/*.gz" \
    "&& python3 -m pip install -q --no-index --no-deps --target there wheels/*.whl" \
    "&& PYTHONPATH=.:there python3 benchmarks/gpu.py" \
    "--data-dir data --minutes $minutes --output \"\${OUT:-.}/gpu\""
