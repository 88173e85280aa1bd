# What nvcc made of the kernels: awk -v arch=80|90 -f sass.awk COUNTS LISTING. COUNTS is from cuda_emu_count.cpp, for
# how many threads and how much dynamic shared memory a block has. LISTING is what ptxas -v says, then nvdisasm -c, both
# through c++filt, with FUNCTION before the name of each. It prints a line of words for each kernel that was counted:
#   its name, threads and dynamic shared memory of a block; registers of a thread, static shared memory of a block;
#   blocks that fit on a multiprocessor; KB of code; then, each as instructions/HMMA/global/shared accesses, what is
#   outside of loops and what is in each loop: that between a backward branch and where it leads, without inner loops.
#   Loops with HMMA come first, then others by their size, six in all.
# A loop's instructions are all that lie in it, also in branches that it seldom takes. Where it has a wide access to
# global memory and at least three narrow ones, the narrow ones are another way to do the same, for addresses that are
# not aligned: only the wide ones are counted.
function short(name) {
    sub(/\(.*/, "", name)
    sub(/^.*void /, "", name)
    gsub(/__nv_bfloat16/, "bf16", name)
    gsub(/ /, "", name)
    return name
}
function least(a, b) { return a < b ? a : b }
function ceil_to(x, unit) { return unit * int((x + unit - 1) / unit) }
# Blocks on a multiprocessor: by threads, by registers (each of four parts has 16384, and gives a warp multiples of
# 256), by shared memory (of which a block takes 1 KB more)
function blocks_on_one(threads, regs, shared,   warps, most) {
    warps = int((threads + 31) / 32)
    most = least(32, int(64 / warps))
    most = least(most, int(int(16384 / ceil_to(regs * 32, 256)) * 4 / warps))
    return least(most, int((arch >= 90 ? 228 : 164) * 1024 / ceil_to(shared + 1024, 128)))
}
function text(l) {
    return instructions[l] + 0 "/" hmma[l] + 0 "/" wide[l] + (narrow[l] < 3 * wide[l] || !wide[l] ? narrow[l] : 0) "/" \
        inner[l] + 0
}
# The end of a function: deals its instructions to its loops, and prints a line for each block size that was counted
function finish(   i, l, at, best, out, k, n_shown, taken) {
    if (name in sizes) {
        split("", instructions); split("", hmma); split("", wide); split("", narrow); split("", inner)
        for (i = 1; i <= n; i++) { # the smallest loop around it, 0: none
            best = 0
            for (l = 1; l <= loops; l++)
                if (from[l] <= i && i <= to[l] && (!best || to[l] - from[l] < to[best] - from[best])) best = l
            instructions[best]++
            hmma[best] += opcode[i] ~ /^HMMA/
            if (opcode[i] ~ /^(LDG|STG|LD\.|ST\.|LD$|ST$|ATOMG|RED)/) {
                if (opcode[i] ~ /\.(64|128)/) wide[best]++
                else narrow[best]++
            }
            inner[best] += opcode[i] ~ /^(LDS|STS|LDGSTS|ATOMS)/
        }
        out = text(0)
        split("", taken)
        for (n_shown = 0; n_shown < 6; n_shown++) {
            best = 0
            for (l = 1; l <= loops; l++)
                if (!(l in taken) && to[l] > from[l] && (!best || hmma[l] > hmma[best] ||
                    (hmma[l] == hmma[best] && instructions[l] > instructions[best]))) best = l
            if (!best) break
            taken[best]
            out = out " " text(best)
        }
        split(sizes[name], list, " ")
        for (k = 1; k in list; k += 2)
            printf "%-52s %4d %6d %4d %6d %3d %6.1f  %s\n", name, list[k], list[k + 1], regs[name], static[name],
                blocks_on_one(list[k], regs[name], static[name] + list[k + 1]), n * 16 / 1024, out
    }
    n = loops = 0
    split("", label); split("", from); split("", to); split("", opcode)
}
NR == FNR {
    if ($1 == "kernel" && !(($2, $6, $7) in seen)) sizes[$2] = sizes[$2] " " $6 " " $7
    seen[$2, $6, $7]
    next
}
/Compiling entry function/ { split($0, quoted, "\047"); compiled = short(quoted[2]); next }
/Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/)
    regs[compiled] = substr($0, RSTART + 5, RLENGTH - 5)
    static[compiled] = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
    next
}
$1 == "FUNCTION" { if (n) finish(); name = short(substr($0, 10)); next }
/^\.L_x_[0-9]+:/ { label[substr($1, 1, length($1) - 1)] = n + 1; next }
/^ *\/\*[0-9a-f]+\*\/ .*;/ {
    sub(/^ *\/\*[0-9a-f]+\*\/ *(\{ *)?(@!?U?P[0-9T]+ *)?/, "")
    opcode[++n] = $1
    if ($1 ~ /^BRA/ && match($0, /\.L_x_[0-9]+/) && substr($0, RSTART, RLENGTH) in label) {
        from[++loops] = label[substr($0, RSTART, RLENGTH)]
        to[loops] = n
    }
}
END { if (n) finish() }
