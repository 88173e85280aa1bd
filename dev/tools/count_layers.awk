# The counts of a step with L layers from those with 2 and with 3 layers, which are the two files: see count.sh. Rows
# belong together that are of the same kernel, with as many blocks and products; or of a kernel that has one row only.
function key() {
    if ($1 == "graph") return $1
    if ($1 == "conflict") return row FS $3
    return row = $2 (rows[$2, 1] == 1 && rows[$2, 2] == 1 ? "" : FS $5 FS $7 FS $19 / $3)
}
FNR == 1 { file++ }
{
    line[++n] = $0
    of[n] = file
    if ($1 == "kernel") rows[$2, file]++
}
END {
    for (j = 1; j <= n; j++) {
        $0 = line[j]
        k = key()
        if (!(k in first)) order[++m] = k
        first[k] = $0
        for (i = 2; i <= NF; i++) sum[k, i] += (of[j] == 1 ? 3 - L : L - 2) * $i
    }
    for (j = 1; j <= m; j++) {
        $0 = first[k = order[j]]
        for (i = $1 == "graph" ? 2 : $1 == "kernel" ? 3 : 4; i <= NF; i++)
            if ($1 != "kernel" || i < 5 || i > 7 || (i == 5 && k == $2)) $i = sum[k, i]
        if ($1 == "kernel" ? $3 : $NF) print
    }
}
