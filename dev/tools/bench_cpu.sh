#!/bin/sh
# Training steps on this CPU, in turn with the machine's limit (OpenBLAS, if its headers are here) and with PyTorch (if
# it is installed): dev/tools/bench_cpu.sh [ROUNDS] [MODEL] [BATCH]; MODEL is gpt [the default] or lstm. PyTorch runs
# with memory settings without which it spends its time in page faults.
cd "$(dirname "$0")/../.." || exit 1
rounds=${1:-3} model=${2:-gpt} batch=${3:-8}
case $model in
gpt) shape="$((batch * 256)) 768 256" ;; # q, k, v of a layer
lstm) shape="$((batch * 256)) 2048 512" ;; # the input product of a layer
*) echo "bench_cpu.sh: $model: the models are gpt and lstm" >&2 && exit 2 ;;
esac
make -s "train_${model}_music" || exit 1
limit=$(mktemp) && trap 'rm -f "$limit"' EXIT
${CC:-cc} -O2 -Idev dev/tools/sgemm_limit.c -o "$limit" -lopenblas 2>/dev/null || limit=
tunables=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296
peer=yes
python3 -c 'import torch' 2>/dev/null || peer=
for round in $(seq "$rounds"); do
    echo "round $round"
    # shellcheck disable=SC2086
    if [ -n "$limit" ]; then "$limit" $shape; else echo "no OpenBLAS: its limit is not measured"; fi
    for precision in fp32 bf16; do
        "./train_${model}_music" --batch "$batch" --precision $precision --bench 10 2>/dev/null | tail -n 1
    done
    if [ -n "$peer" ]; then
        GLIBC_TUNABLES=$tunables python3 dev/tools/torch_music.py --device cpu --model "$model" --modes eager,amp \
            --batch "$batch" --steps 6 | grep -E "^$model|torch"
    else
        echo "no PyTorch: it is not compared"
    fi
done
