#!/bin/sh
# What the model files repeat on purpose, so that each can be read by itself, is the same text in all copies: the
# section on parameters on CPU and GPU, and softmax with cross-entropy, Adamax and the CPU's embedding in both models.
. "$(dirname "$0")/check.sh"

# parameters FILE: the section of that heading. paragraph NAME FILE: the function of that name, with its comment.
parameters() { sed -n '/^\/\/ ---- parameters$/,/^\/\/ ---- embedding$/p' "$1"; }
paragraph() { awk -v RS= -v name="(^|\n)[^/\n]*[ *]$1[(]" '$0 ~ name "[^;]*[{]"' "$2"; }

# same DESCRIPTION FILE FILE COMMAND...: the command, with a file as its last argument, prints the same of both
same() {
    description=$1 one=$2 two=$3
    shift 3
    "$@" "${root:?}/$one" >one.txt
    "$@" "$root/$two" >two.txt
    diff one.txt two.txt >stderr
    check "$description: the same text in $one and $two" test ! -s stderr -a "$(wc -l <one.txt)" -ge 5
}

for model in gpt lstm; do
    same parameters dev/train_${model}_music.c train_${model}_music.cu parameters
done
model=
for name in embedding_forward embedding_backward softmax_cross_entropy adamax; do
    same "$name()" dev/train_gpt_music.c dev/train_lstm_music.c paragraph $name
done
for name in softmax_cross_entropy_kernel softmax_cross_entropy adamax_kernel adamax; do
    same "$name()" train_gpt_music.cu train_lstm_music.cu paragraph $name
done
report copies
