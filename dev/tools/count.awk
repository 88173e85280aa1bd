# The tables of make count, from what cuda_emu_count.cpp prints. All counts are of one launch, those of a kernel's
# launches averaged. ratio: over the fewest.
function ratio(used, least) { return least ? sprintf("%.2f", used / least) : "-" }
$1 == "graph" {
    printf "a graph of %d nodes, %d on the longest path, %d of them behind a programmatic edge\n\n", $2, $3, $4
    next
}
$1 == "kernel" {
    kernels[++n] = $0
    if (length($2) > width) width = length($2)
}
$1 == "conflict" {
    if (!(($2, $3) in used)) where[++m] = $2 SUBSEP $3
    used[$2, $3] += $4
    least[$2, $3] += $5
}
END {
    format = "%-" width "s %3s %4s %6s %4s  %8s %6s %8s %6s %7s %7s %7s\n"
    printf format, "global memory", "", "on", "", "", "1000", "", "1000", "", "MB", "MB", "MB"
    printf format, "kernel", "n", "path", "blocks", "thr", "loads", "ratio", "stores", "ratio", "in", "out", "L2"
    for (j = 1; j <= n; j++) {
        $0 = kernels[j]
        printf format, $2, $3, $4, $5, $6, sprintf("%.1f", $8 / $3 / 1e3), ratio($9, $10),
            sprintf("%.1f", $12 / $3 / 1e3), ratio($13, $14), sprintf("%.2f", $11 * 32e-6 / $3),
            sprintf("%.2f", $15 * 32e-6 / $3), sprintf("%.2f", ($9 + $13) * 32e-6 / $3)
    }
    format = "%-" width "s %3s %9s %10s %6s %9s %8s %8s %6s\n"
    printf "\n" format, "on the multiprocessor", "", "shared", "1000 wave-", "", "1000", "barriers", "of warps", "of"
    printf format, "kernel", "n", "requests", "fronts", "ratio", "products", "a block", "a block", "grids"
    for (j = 1; j <= n; j++) {
        $0 = kernels[j]
        printf format, $2, $3, sprintf("%.1f", $16 / $3 / 1e3), sprintf("%.1f", $17 / $3 / 1e3), ratio($17, $18),
            sprintf("%.1f", $19 / $3 / 1e3), sprintf("%.1f", $20 / $3 / $5), sprintf("%.1f", $21 / $3 / $5), $22 / $3
    }
    print m ? "\nwhere banks conflict: wavefronts over the fewest" : "\nno banks conflict"
    for (j = 1; j <= m; j++) {
        split(where[j], at, SUBSEP)
        printf "%-" width "s %-28s %10d %s\n", at[1], at[2], used[where[j]], ratio(used[where[j]], least[where[j]])
    }
}
