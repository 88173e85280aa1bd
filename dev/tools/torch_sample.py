#!/usr/bin/env python3
"""Token after token in PyTorch: the peer of sample_music's speed, one song, one thread.

    torch_sample.py MODEL.safetensors [--context 256] [--tokens 1000] [--seed 1] [--check]

The Transformer keeps keys and values of the last --context tokens in a ring, so that a token costs one pass; the LSTM
is a TorchScript module that carries its state. Temperature 1, no grammar. Prints `peer model=gpt context=256
tokens_per_s=...`, the median over tokens once the context is full. --check compares the logits with the full forward
of dev/tools/torch_music.py.
"""
import argparse
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

V = 153


class Gpt:
    name = "gpt"

    def __init__(self, w, context):
        self.w, self.N = w, context
        self.emb = w["emb.weight"]
        self.C, self.size = self.emb.shape[1], w["layers.0.attn.rel"].shape[1]
        self.heads, self.layers = self.C // self.size, 0
        while "layers.%d.attn.rel" % self.layers in w:
            self.layers += 1
        rel = w["layers.0.attn.rel"].shape[0]
        self.cache = torch.zeros(self.layers, 2, self.heads, context, self.size)
        slots = torch.arange(context)
        distance = (slots[:, None] - slots[None, :]) % context  # [slot of the token][slot of the key]
        self.rel_row = (rel - 1 - distance.clamp(max=rel - 1)).contiguous()
        self.t = 0
        self.parts = []
        for i in range(self.layers):
            p = "layers.%d." % i
            names = ("attn.qkv", "attn.out", "ln1", "fc1", "fc2", "ln2")
            self.parts.append([(w[p + n + ".weight"], w[p + n + ".bias"]) for n in names] +
                              [w[p + "attn.rel"].t().contiguous()])

    def step(self, token):  # [1] -> logits [1, V]
        C, slot, filled = self.C, self.t % self.N, min(self.t + 1, self.N)
        x = self.emb[token]
        row, scores, scale = self.rel_row[slot, :filled], 0.0, 1.0 / math.sqrt(self.size)
        for cache, (qkv, out, ln1, fc1, fc2, ln2, rel) in zip(self.cache, self.parts):
            q, k, v = F.linear(x, *qkv).view(3, self.heads, 1, self.size)
            keys, values = cache[0], cache[1]
            keys[:, slot], values[:, slot] = k[:, 0], v[:, 0]
            near = (q @ rel)[:, 0].index_select(1, row)
            scores = (torch.bmm(q, keys[:, :filled].transpose(1, 2))[:, 0] + near) * scale + scores
            a = torch.bmm(torch.softmax(scores, -1)[:, None], values[:, :filled])
            x = F.layer_norm(F.linear(a.view(1, C), *out) + x, (C,), *ln1)
            x = F.layer_norm(F.linear(F.relu(F.linear(x, *fc1)), *fc2) + x, (C,), *ln2)
        self.t += 1
        return F.linear(x, self.w["head.weight"], self.w["head.bias"])


class LstmModule(nn.Module):
    def __init__(self, w):
        super().__init__()
        layers = 1
        while "lstm.weight_ih_l%d" % layers in w:
            layers += 1
        H, E = w["lstm.weight_hh_l0"].shape[1], w["emb.weight"].shape[1]
        self.emb, self.lstm = nn.Embedding(V, E), nn.LSTM(E, H, layers)
        H1, H2 = w["head.1.weight"].shape[0], w["head.5.weight"].shape[0]
        self.head = nn.Sequential(nn.Identity(), nn.Linear(H, H1), nn.LayerNorm(H1), nn.ReLU(), nn.Identity(),
                                  nn.Linear(H1, H2), nn.LayerNorm(H2), nn.ReLU(), nn.Identity(), nn.Linear(H2, V))
        self.load_state_dict(w)

    def forward(self, token, h, c):
        x, (h, c) = self.lstm(self.emb(token)[None], (h, c))
        return self.head(x[0]), h, c


class Lstm:
    name = "lstm"

    def __init__(self, w):
        module = LstmModule(w).eval()
        self.h = torch.zeros(module.lstm.num_layers, 1, module.lstm.hidden_size)
        self.c = torch.zeros_like(self.h)
        self.script = torch.jit.freeze(torch.jit.script(module))

    def step(self, token):
        logits, self.h, self.c = self.script(token, self.h, self.c)
        return logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", metavar="CHECKOUT")
    o = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(o.seed)
    w = {k: v.float() for k, v in load_file(o.model).items() if not k.startswith("adamax")}
    lstm = "lstm.weight_hh_l0" in w
    with torch.no_grad():
        model = Lstm(w) if lstm else Gpt(w, o.context)
        token, times, fed, given = torch.tensor([0]), [], [], []
        for i in range(o.context + o.tokens):
            fed.append(int(token))
            start = time.perf_counter()
            logits = model.step(token)
            token = torch.multinomial(torch.softmax(logits, -1), 1)[0]
            if i >= o.context:
                times.append(time.perf_counter() - start)
            if o.check and i < o.context:
                given.append(logits[0].clone())
        if o.check:
            sys.path.insert(0, os.path.join(o.check, "dev"))
            import torch_music
            kind = torch_music.LSTM if lstm else torch_music.GPT
            peer = kind(dropout=0.0, **kind.sizes_of(w)).eval()
            peer.load_state_dict(w)
            full = peer(torch.tensor([fed[:o.context]]))[0]
            print("largest difference from the full forward: %.1e" % (full - torch.stack(given)).abs().max())
    print("peer model=%s%s tokens_per_s=%.0f" % (model.name, "" if lstm else " context=%d" % o.context,
                                                 1 / statistics.median(times)))


main()
