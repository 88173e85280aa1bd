#!/bin/sh
# dev/tools/gpu.sh without a GPU: in a tree and with tools that only pretend. What is tested is the script: its order,
# that what was done is kept when something fails, takes too long or is stopped, and is not done again.
. "$(dirname "$0")/check.sh"

mkdir -p bin tree/dev/tools tree/dev/cuda tree/data_prep
cp "$root/dev/tools/gpu.sh" tree/dev/tools/gpu.sh
cd tree || exit 1
touch Makefile train_gpt_music.cu dev/cuda/kernel.cuh dev/train_gpt_music.c dev/tools/gpu_limits.cu
PATH=$scratch/bin:$PATH TMPDIR=$scratch
export PATH TMPDIR

pretend() { # FILE: a program of the lines of stdin
    { echo '#!/bin/sh' && cat; } >"$1"
    chmod +x "$1"
}
echo 'case $* in *about* | *name*) echo "Pretended GPU, 1 MiB, 1.0, 9.0" ;; *) echo 9.0 ;; esac' |
    pretend ../bin/nvidia-smi
pretend ../bin/nvcc <<'END'
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && { echo 'printf "copy_GB_s 4000\nbf16_TFLOP_s 800\nfp32_TFLOP_s 50\n"' >"$2"; chmod +x "$2"; }
    shift
done
echo "Cuda compilation tools, release 12.4"
END
pretend ../bin/make <<'END'
for name; do
    case $name in
        train_gpt_music)
            cp pretended train_gpt_music
            echo "ptxas info    : Compiling entry function '_Z6kernelv' for 'sm_90'"
            echo "    0 bytes stack frame, ${SPILLS:-0} bytes spill stores, 0 bytes spill loads"
            echo "ptxas info    : Used 96 registers, used 1 barriers"
            ;;
    esac
done
END
pretend pretended <<'END'
out=
for word; do
    case $last in --out) out=$word ;; --epochs) epoch=$word ;; --batch) batch=$word ;; esac
    last=$word
done
case $* in
    *--bench*)
        echo "a graph of 90 graph nodes"
        echo "bench model=gpt device=cuda batch=$batch ms_per_step=$batch gflop_per_s=80000"
        ;;
    *)
        [ -z "$HANG" ] || sleep 60
        mkdir -p "$out" && echo model >"$out/model.safetensors"
        echo "epoch $epoch  train 1.4  test 1.2$epoch  lr 0.002  steps 10  1.5 s"
        ;;
esac
END
pretend dev/tools/compare.sh <<'END'
[ -z "$DIFFERENT" ] || { echo "0.1 FAIL"; exit 1; }
for precision in fp32 bf16; do echo "$precision, after a step"; echo "compare tensors=9 used=0.5"; done
END
pretend ../bin/compute-sanitizer <<'END'
END
pretend ../bin/cuobjdump <<'END'
echo "Function : kernel"
echo "HMMA.16816"
END
echo 'exit 1' | pretend ../bin/python3 # no PyTorch
for name in prepare_music compose_music; do pretend data_prep/$name </dev/null; done
pretend ../bin/ncu <<'END'
echo '==PROF== Connected'
echo '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"'
name='void matmul_kernel<__nv_bfloat16, float, (bool)0, (bool)1, (int)64, (int)64>(const float *, int)'
for step in 1 2 3 4; do
    for metric in gpu__time_duration.sum dram__bytes.sum sm__throughput.avg.pct_of_peak_sustained_elapsed; do
        echo "\"$step\",\"$name\",\"(128, 1, 1)\",\"(16, 4, 1)\",\"$metric\",\"ns\",\"2,500\""
    done
done
END
pretend dev/tools/count.sh <<'END'
echo "kernel                    n blocks  /SM   Minstr  MB DRAM    MB L2        us bound"
echo "matmul_kernel<bf16,float,false,true,64,64>  1  64  5  1.0  0.0  2.0  3.5 issue"
echo "path of kernels 3 us, beside it 0 us, 1 nodes of the path x 1.5 us = 1 us; a step 0.005 ms"
END

gpu() { # STATUS ARGUMENTS...: gpu.sh ends with this status
    wanted=$1
    shift
    "$@" >../stdout 2>../stderr
    status=$?
    check "exit status $status instead of $wanted: $*" test $status -eq "$wanted"
}
row() { grep -q "^$1 *$2" out/gpu.txt; } # PART STATUS
all="build compare memcheck time train sanitize limits profile"

gpu 0 dev/tools/gpu.sh --out out
for part in $all; do check "$part is ok" row "$part" ok; done
order=$(sed -n 's/^gpu.sh: \([a-z]*\), at most .*/\1/p' ../stdout | tr '\n' ' ')
check "the order of the parts is: $order" test "$order" = "$all "
check "a row of steps: mean, rounds, share of the card's rate" grep -q '^gpt *bf16 *64 *64 *64 64 .* 10.0 %' out/gpu.txt
check "a kernel's measured time stands beside the expected one" \
    grep -q ' 2.50 *3.5  matmul_kernel<bf16,float,false,true,64,64> 64$' out/gpu.txt
check "how much of the tolerance was used" grep -q "gpt bf16, largest difference from the CPU  *0.5" out/gpu.txt
check "both recipes were trained" test "$(grep -c 'test loss after each epoch' out/gpu.txt)" -eq 2
check "the commands stand in gpu.json" grep -q '"command": "./train_gpt_music --recipe tuned --data' out/gpu.json

gpu 0 dev/tools/gpu.sh --out out
check "what is done is not done again" test "$(grep -c 'is done' ../stdout)" -eq 8
check "the table is there all the same" row limits ok
gpu 0 dev/tools/gpu.sh --out out compare
check "a named part is done again, alone" test "$(grep -c 'at most' ../stdout)" -eq 1

echo changed >>dev/cuda/kernel.cuh
gpu 1 env DIFFERENT=yes dev/tools/gpu.sh --out out
check "other code: all is done again, what fails too" test "$(grep -c 'at most' ../stdout)" -eq 8
check "the part that fails says so" row compare FAILED
check "the others are done" row profile ok
gpu 0 dev/tools/gpu.sh --out out
check "only what failed is done again" test "$(sed -n 's/, at most.*//p' ../stdout)" = "gpu.sh: compare"
gpu 1 env SPILLS=8 dev/tools/gpu.sh --out out build
check "a spill is a failure" row build FAILED

gpu 1 env HANG=yes GPU_SECONDS=6 dev/tools/gpu.sh --out out build time train limits
check "a part that takes too long" row train OVERRAN
check "what was done before it is kept" row time ok
check "its figures too" grep -q '^gpt *bf16 *8 *8' out/gpu.txt
HANG=yes dev/tools/gpu.sh --out out train >../stdout 2>&1 &
process=$!
tries=0
while [ ! -e out/parts/train/figures ] && [ $tries -lt 100 ]; do tries=$((tries + 1)) && sleep 0.1; done
sleep 0.5
kill $process
wait $process
process=
check "a part that was stopped" row train INTERRUPTED
check "what was done before that is kept" row time ok
gpu 2 dev/tools/gpu.sh --out out nonsense
check "an unknown part is refused in a sentence" grep -q 'no such part' ../stderr
cd .. || exit 1
report gpu_script
