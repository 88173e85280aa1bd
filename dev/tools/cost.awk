# A model of a training step's time on a GPU: awk [-v NAME=VALUE...] -f cost.awk SASS COUNTS, from what sass.awk printed
# for the card's architecture and what cuda_emu_count.cpp printed. It is to compare kernels and changes of kernels. The
# figures below are those of an H100 SXM, and guesses where data sheets do not say; a measurement corrects them.
#
# A kernel takes as long as what limits it, and `overlap` of what else it does:
#   issue    its instructions, by the schedulers that have a warp, `ipc` a clock. They are estimated: loops with HMMA
#            run as often as its products ask for, other loops with global accesses as often as the accesses that are
#            left ask for, and of what is outside of loops `taken` is executed. Of the two forms of a matrix product's
#            loop the shorter one runs, for aligned rows
#   mma      its products, `hmma` clocks each
#   shared   its wavefronts, one a clock on each multiprocessor
#   L2       what requests bring, by `l2` bytes a second in all and `l2_sm` bytes a clock on each multiprocessor
#   DRAM     what is new in a launch, unless the step fits into the L2 cache (`resident`)
#   latency  what one block takes alone: `start` clocks and, of each warp, `alone` clocks an instruction, for each wave
# Blocks that hand numbers to each other (recurrence_*) take rounds instead: a store's way to L2, a look, what a round
# fetches, its products, its gates, and, in clusters, `cluster` seconds for the sums of a block and the cluster's
# barrier. Kernels off the longest path run beside it: `beside` of their time is added. Each node of the path costs
# `node` seconds, or `early` where it is behind a programmatic edge.
function most(a, b) { return a > b ? a : b }
function least(a, b) { return a < b ? a : b }
function set(name, value) { return name == "" ? value : name + 0 }
BEGIN {
    clock = set(clock, 1.755e9); sms = set(sms, 132); ipc = set(ipc, .6); hmma = set(hmma, 5.75)
    dram = set(dram, 4.3e12 * .9); l2 = set(l2, 5.5e12); l2_sm = set(l2_sm, 64); resident = set(resident, 1)
    node = set(node, 1.5e-6); early = set(early, .8e-6); overlap = set(overlap, .15); beside = set(beside, .2)
    mma_use = set(mma_use, .75)
    taken = set(taken, .5); start = set(start, 1100); alone = set(alone, 1.25)
    store_and_look = set(store_and_look, 180 + 560); fetch = set(fetch, 280); gates = set(gates, 415)
    cluster = set(cluster, .33e-6)
    printf "%-52s %3s %6s %4s %8s %8s %8s  %8s %s\n", "kernel", "n", "blocks", "/SM", "Minstr", "MB DRAM", "MB L2", \
        "us", "bound"
}
NR == FNR { # name threads dynamic regs static blocks KB outside loops...
    per_sm[$1, $2, $3] = $6
    code[$1] = $8
    for (i = 9; i <= NF; i++) code[$1] = code[$1] " " $i
    next
}
$1 == "graph" { nodes = $3 - $4; early_nodes = $4; next }
$1 != "kernel" { next }
{
    name = $2; n = $3; blocks = $5; warps = int(($6 + 31) / 32) * blocks; products = $19 / n
    accesses = ($8 + $12) / n; wavefronts = $17 / n
    bytes = ($9 + $13) / n * 32; new = ($11 + $15) / n * 32
    fit = most(1, per_sm[name, $6, $7])
    # instructions
    parts = split(code[name], part, " ")
    split(part[1], at, "/")
    instructions = taken * warps * at[1]
    accesses -= taken * warps * at[3]
    products -= warps * at[2]
    split("", sum)
    for (i = 2; i <= parts; i++) {
        split(part[i], at, "/")
        kind = at[2] > 0 ? "mma" : at[3] > 0 ? "memory" : "none"
        if (kind == "mma" && name ~ /^matmul_/) # the last is the shorter form
            sum[kind] = sum[kind, "hmma"] = sum[kind, "global"] = 0
        sum[kind] += at[1]; sum[kind, "hmma"] += at[2]; sum[kind, "global"] += at[3]
    }
    trips = sum["mma", "hmma"] ? products / sum["mma", "hmma"] : 0
    instructions += trips * sum["mma"]
    accesses -= trips * sum["mma", "global"]
    if (accesses > 0 && sum["memory", "global"]) instructions += accesses / sum["memory", "global"] * sum["memory"]
    products = $19 / n
    # limits
    waves = int((blocks + sms * fit - 1) / (sms * fit))
    schedulers = 4 * sms * least(1, warps / (4 * sms))
    used = least(sms, blocks)
    split("", t)
    t["issue"] = instructions / (schedulers * ipc) / clock
    t["mma"] = products * hmma / schedulers / mma_use / clock
    t["shared"] = wavefronts / used / clock
    t["L2"] = bytes / least(l2, l2_sm * clock * used)
    t["DRAM"] = resident ? 0 : new / dram
    t["latency"] = (start + alone * instructions / warps) * waves / clock
    if (name ~ /^recurrence_.*_fast/) {
        rounds = $20 / n / blocks
        split("", t)
        t["exchange"] = rounds * (store_and_look + fetch + most(bytes / rounds / blocks / l2_sm, \
            bytes / rounds / l2 * clock) + products / warps / rounds * 2 * 6.4 + 60 + gates + \
            ($22 ? cluster * clock : 0)) / clock
    }
    time = total = 0
    for (limit in t) {
        total += t[limit]
        if (t[limit] > time) { time = t[limit]; bound = limit }
    }
    time += overlap * (total - time)
    printf "%-52s %3d %6d %4d %8.2f %8.1f %8.1f  %8.1f %s\n", name, n, blocks, fit, instructions / 1e6, \
        resident ? 0 : new / 1e6, bytes / 1e6, time * 1e6, bound ($4 == 0 ? " (side)" : "")
    main += $4 * time
    side += (n - $4) * time
}
END {
    launches = nodes * node + early_nodes * early
    printf "path of kernels %.0f us, beside it %.0f us, %d nodes of the path x %.1f us and %d x %.1f us = %.0f us; " \
        "a step %.3f ms\n", main * 1e6, side * 1e6, nodes, node * 1e6, early_nodes, early * 1e6, launches * 1e6, \
        (main + beside * side + launches) * 1e3
}
