#!/bin/sh
# The Transformer's training step on this CPU, in turn with the machine's limit (OpenBLAS, if its headers are here) and with
# a PyTorch peer: dev/bench_cpu.sh [ROUNDS]. PEER=FILE names the peer's script, which prints a row `gpt MODE 8 MS ...` for
# each of its modes; it runs with memory settings without which PyTorch spends its time in page faults.
cd "$(dirname "$0")/.." || exit 1
make -s train_gpt_music || exit 1
limit=$(mktemp) && trap 'rm -f "$limit"' EXIT
${CC:-cc} -O2 dev/sgemm_limit.c -o "$limit" -lopenblas 2>/dev/null || limit=
tunables=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296
for round in $(seq "${1:-3}"); do
    echo "round $round"
    if [ -n "$limit" ]; then "$limit" 2048 768 256; else echo "no OpenBLAS: its limit is not measured"; fi
    ./train_gpt_music --bench 10 2>/dev/null | tail -n 1
    if [ -n "$PEER" ]; then
        GLIBC_TUNABLES=$tunables python3 "$PEER" --device cpu --model gpt --modes eager,amp --batch 8 --steps 6 |
            grep -E '^gpt|torch'
    fi
done
