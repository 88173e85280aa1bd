#!/usr/bin/env python3
"""Both models in PyTorch: the peer that the trainers are compared with, in speed and number by number.

Time training steps as a PyTorch user would run them, from the plain way to the best one (what it does by default):

    torch_music.py [--model gpt|lstm|both] [--modes eager,amp,compiled] [--batch 8,64,512] [--json FILE]

  eager      plain modules, float32, plain Adamax
  tf32       the same with TF32 allowed and the foreach Adamax
  amp        and under bfloat16 autocast (in which cuDNN's LSTM computes in float16)
  graph      and, on a GPU, the whole step, optimizer too, as one CUDA graph
  compiled   and model, loss and optimizer through torch.compile, but for the LSTM's recurrence, which is cuDNN's
  tuned      and with its max-autotune, which takes minutes
  split      compiled, the LSTM's layers one by one, padded to what PyTorch takes cuDNN's persistent kernels for
A row for each: the median of milliseconds per step, tokens and model FLOPs per second; on a GPU its own limits too,
which --limits shows alone. A CPU's figures are fair only with memory settings such as dev/tools/bench_cpu.sh makes.

The Transformer's attention cannot be PyTorch's fused one (SDPA, FlexAttention): each layer's raw scores go to the next.

Repeat the training step that a trainer has dumped, from its weights and its batch, and compare every tensor of it:

    ./train_lstm_music --dropout 0 --dump a.safetensors
    dev/tools/torch_music.py --like a.safetensors --dump b.safetensors
    dev/tools/compare_tensors compare a.safetensors b.safetensors --rtol 1e-5

In float32 a ReLU's input may be so near to zero that it falls on either side: then gradients differ by up to 1e-4.

Evaluate a model as the trainers do, or make a new one; the files are the same, and the sizes are in their shapes:

    dev/tools/torch_music.py --init out/gpt/model.safetensors --eval data/test.safetensors
    dev/tools/torch_music.py --model lstm --save new.safetensors

Needs PyTorch 1.13 or newer (`compiled`: 2), and for files the packages safetensors and numpy. Dropout draws PyTorch's
own random numbers, so steps agree only without it. Exit status: 0 done, 1 it failed, 2 wrong usage.
"""
import argparse
import gc
import json
import math
import os
import statistics
import sys
import time


def fail(sentence):
    sys.exit("torch_music.py: " + sentence)


try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as problem:
    fail("PyTorch cannot be imported (%s); install it: pip install torch" % problem)

V = 153  # tokens

# ---- the models: x is [B, T] tokens, the result [B, T, V] logits


class RelAttention(nn.Module):
    """Causal self-attention with clipped relative positions (Music Transformer) and score residuals (RealFormer)."""

    def __init__(self, width, heads, distances):
        super().__init__()
        self.heads, self.distances = heads, distances
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rel = nn.Parameter(torch.randn(distances, width // heads))  # row distances-1-n is the vector of distance n
        for i in range(3):
            nn.init.xavier_normal_(self.qkv.weight[i * width:(i + 1) * width])
        nn.init.zeros_(self.qkv.bias)
        nn.init.xavier_normal_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x, below):
        """below: the raw scores of the layer below, or None. Returns the output and this layer's scores."""
        B, T, C = x.shape
        size = C // self.heads
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, size).permute(2, 0, 3, 1, 4)  # each [B, heads, T, size]
        farther = max(0, T - self.distances)  # they share row 0
        rel = torch.cat((self.rel[:1].expand(farther, -1), self.rel)) if farther else self.rel[self.distances - T:]
        relative = q @ rel.transpose(0, 1)  # [B, heads, T, T], column T-1-n is distance n
        relative = F.pad(relative, (1, 0)).view(B, self.heads, T + 1, T)[:, :, 1:]  # skewed: column j is key j
        scores = (q @ k.transpose(-1, -2) + relative) * (1.0 / math.sqrt(size))
        if below is not None:
            scores = scores + below
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        a = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1).to(v.dtype)
        return self.out((a @ v).transpose(1, 2).reshape(B, T, C)), scores


class Layer(nn.Module):
    def __init__(self, width, heads, hidden, distances, dropout):
        super().__init__()
        self.attn = RelAttention(width, heads, distances)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ln1, self.ln2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x, below):
        a, scores = self.attn(x, below)
        x = self.ln1(self.drop(a) + x)
        return self.ln2(self.drop(self.fc2(F.relu(self.fc1(x)))) + x), scores


class GPT(nn.Module):
    name, lr = "gpt", 1e-3

    def __init__(self, dropout=0.5, layers=8, width=256, heads=16, hidden=512, rel=240):
        super().__init__()
        self.sizes = {"layers": layers, "width": width, "heads": heads, "hidden": hidden, "rel": rel}
        self.emb = nn.Embedding(V, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden, rel, dropout) for _ in range(layers))
        self.head = nn.Linear(width, V)

    @staticmethod
    def sizes_of(weights):
        rel, layers = weights["layers.0.attn.rel"], 1
        while "layers.%d.attn.rel" % layers in weights:
            layers += 1
        width = weights["emb.weight"].shape[1]
        return {"layers": layers, "width": width, "heads": width // rel.shape[1],
                "hidden": weights["layers.0.fc1.weight"].shape[0], "rel": rel.shape[0]}

    def forward(self, x):
        x, scores = self.emb(x), None
        for layer in self.layers:
            x, scores = layer(x, scores)
        return self.head(x)

    def traced(self, x):
        """The logits, and the activations by their names in a dump."""
        acts = {}

        def keep(name, module, its_input=False):
            def hook(_, inputs, output):
                acts["act." + name] = inputs[0] if its_input else output
            return module.register_forward_hook(hook)

        hooks = [keep("emb", self.emb)]
        for i, layer in enumerate(self.layers):
            for name, module in (("qkv", layer.attn.qkv), ("ln1", layer.ln1), ("ln2", layer.ln2)):
                hooks.append(keep("layers.%d.%s" % (i, name), module))
            hooks.append(keep("layers.%d.attn" % i, layer.attn.out, its_input=True))
            hooks.append(keep("layers.%d.fc1" % i, layer.fc2, its_input=True))
        logits = self(x)
        for hook in hooks:
            hook.remove()
        return logits, acts

    def flops(self, B, T):
        """Of a training step: three times the forward's products, attention's below the diagonal only."""
        L, C, hidden = self.sizes["layers"], self.sizes["width"], self.sizes["hidden"]
        linear = 2 * B * T * (L * (4 * C * C + 2 * C * hidden) + C * V)
        return 3 * (linear + L * 3 * 2 * B * (T * (T + 1) // 2) * C)


class LSTM(nn.Module):
    name, lr = "lstm", 5e-4

    def __init__(self, dropout=0.5, embed=64, width=512, layers=2):
        super().__init__()
        self.sizes, H = {"embed": embed, "width": width, "layers": layers}, width
        self.split = False  # see recurrence()
        self.emb = nn.Embedding(V, embed)
        self.lstm = nn.LSTM(embed, H, layers, dropout=dropout if layers > 1 else 0, batch_first=True)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(H, 2 * H), nn.LayerNorm(2 * H), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(2 * H, H), nn.LayerNorm(H), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(H, V))

    @staticmethod
    def sizes_of(weights):
        layers = 1
        while "lstm.weight_ih_l%d" % layers in weights:
            layers += 1
        return {"embed": weights["emb.weight"].shape[1], "width": weights["lstm.weight_hh_l0"].shape[1],
                "layers": layers}

    def recurrence(self, x):
        """Of all layers in one call of cuDNN; or split, since PyTorch takes the persistent kernels only for one layer
        whose input is a multiple of 128 wide, in half precision, for batches of a multiple of 8 up to 128."""
        if not self.split:
            return self.lstm(x)[0]
        start = x.new_zeros(1, x.shape[0], self.sizes["width"])
        for l in range(self.sizes["layers"]):
            w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[l]
            padding = (0, -x.shape[-1] % 128)
            x = F.dropout(x, self.lstm.dropout if l else 0.0, self.training)
            weights = [F.pad(w_ih, padding), w_hh, b_ih, b_hh]
            x = torch._VF.lstm(F.pad(x, padding), (start, start), weights, True, 1, 0.0, self.training, False, True)[0]
        return x

    def forward(self, x):
        return self.head(self.recurrence(self.emb(x)))

    def traced(self, x):
        """The logits, and the activations by their names in a dump. One call per position: cells are seen only so."""
        x, state, out, states = self.emb(x), None, [], []
        for t in range(x.shape[1]):
            y, state = self.lstm(x[:, t:t + 1], state)
            out.append(y)
            states.append(state)
        acts = {}
        for l in range(self.sizes["layers"]):
            for i, name in enumerate("hc"):
                acts["act.%s_l%d" % (name, l)] = torch.stack([state[i][l] for state in states], 1)
        x = torch.cat(out, 1)
        for i, module in enumerate(self.head):
            x = module(x)
            if isinstance(module, nn.ReLU):
                acts["act.head.%d" % i] = x
        return x, acts

    def flops(self, B, T):
        E, H, L = self.sizes["embed"], self.sizes["width"], self.sizes["layers"]
        return 3 * 2 * B * T * (4 * H * (E + H) + (L - 1) * 4 * H * 2 * H + 2 * 2 * H * H + H * V)


MODELS = {"gpt": GPT, "lstm": LSTM}

# ---- files


def safetensors():
    try:
        import numpy  # which safetensors asks for only when it saves
        import safetensors.torch
        return safetensors
    except ImportError as problem:
        fail("files cannot be read or written (%s); install what they need: pip install safetensors numpy" % problem)


def read(path):
    """The tensors of a file, and its metadata."""
    package = safetensors()
    try:
        with package.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, package.SafetensorError) as problem:
        fail("%s: it cannot be read as safetensors: %s" % (path, problem))


def write(path, tensors, metadata):
    package = safetensors()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        package.torch.save_file(tensors, path + ".tmp", dict(metadata, torch=torch.__version__))
        os.replace(path + ".tmp", path)
    except (OSError, package.SafetensorError) as problem:
        fail("%s: it cannot be written: %s" % (path, problem))


def model_of(weights, path, dropout):
    """The model that these tensors belong to, in their precision. Others, such as a resume state's, are left alone."""
    kinds = [kind for kind, sign in ((GPT, "layers.0.attn.rel"), (LSTM, "lstm.weight_ih_l0")) if sign in weights]
    if not kinds:
        fail("%s: it holds neither a Transformer nor an LSTM" % path)
    try:
        model = kinds[0](dropout, **kinds[0].sizes_of(weights)).to(weights["emb.weight"].dtype)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
    except (KeyError, IndexError, ZeroDivisionError, RuntimeError) as problem:
        fail("%s: its tensors do not fit together: %s" % (path, " ".join(str(problem).split())))
    return model


def metadata_of(model):
    return dict({name: str(size) for name, size in model.sizes.items()}, model=model.name, vocabulary=str(V))


# ---- what it does


def allow_tf32(allowed):  # on a GPU, for float32
    torch.set_float32_matmul_precision("high" if allowed and torch.cuda.is_available() else "highest")
    try:
        torch.backends.cudnn.allow_tf32 = allowed
    except RuntimeError:  # newer releases: one switch for both
        pass


def repeat_step(model, dump, metadata, lr, path):
    """One training step on the batch of a dump; every tensor of it goes to path.

    The update is Adamax's on the dump's gradients. Near a first step it is almost lr * sign(g): of a gradient that is
    zero but for rounding, such as that of a key's bias, each program would make a step of its own.
    """
    x, y = dump["input"], dump["target"]
    device = model.emb.weight.device
    tensors = {"input": x, "target": y}
    tensors.update(("param." + name, p.detach().clone()) for name, p in model.named_parameters())
    logits, acts = model.traced(x.to(device))
    loss = F.cross_entropy(logits.reshape(-1, V), y.to(device).reshape(-1))
    loss.backward()
    tensors.update(acts, logits=logits, loss=loss.reshape(1))
    tensors.update(("grad." + name, p.grad) for name, p in model.named_parameters())
    for name, p in model.named_parameters():
        p.grad = dump["grad." + name].to(p) if "grad." + name in dump else p.grad
    lr = lr or float(metadata.get("lr", model.lr))
    with torch.no_grad():  # PyTorch's Adamax has no decoupled weight decay
        for p in model.parameters():
            p.mul_(1 - lr * float(metadata.get("weight_decay", 0)) * (p.dim() == 2))
    torch.optim.Adamax(model.parameters(), lr=lr).step()
    keep = float(metadata.get("average", 0))
    part = max(1 - keep, 10 / 11)  # of the new weights in their average, after a first step
    if metadata.get("step", "0") == "0":
        for name, p in model.named_parameters():
            tensors["new." + name] = p
            if keep:
                tensors["new.average." + name] = torch.lerp(tensors["param." + name], p, part)
    else:
        print("torch_music.py: the dump is of a later step: new.* is left out", file=sys.stderr)
    write(path, tensors, metadata)
    print("loss %.9g: %s" % (loss.item(), path))


def evaluate(model, path, T, stride, B=8):
    data, _ = read(path)
    if "tokens" not in data or "pieces" not in data:
        fail("%s: it is no dataset, which has the tensors tokens and pieces" % path)
    pieces = data["pieces"].tolist()
    starts = [start for a, b in zip(pieces, pieces[1:]) for start in range(a, b - T)][::stride]
    if not starts:
        fail("%s: no piece has a window of %d tokens" % (path, T + 1))
    device, total = model.emb.weight.device, 0.0
    model.eval()
    with torch.no_grad():
        for i in range(0, len(starts), B):
            window = torch.stack([data["tokens"][s:s + T + 1] for s in starts[i:i + B]]).long().to(device)
            losses = F.cross_entropy(model(window[:, :-1]).reshape(-1, V), window[:, 1:].reshape(-1), reduction="none")
            total += losses.double().sum().item()
    tokens = len(starts) * T
    print("eval loss=%#.7g windows=%d tokens=%d stride=%d" % (total / tokens, len(starts), tokens, stride))


MODES = {  # of timing: precision, torch.compile's mode, whether a GPU runs the step as one graph
    "eager": ("float32", None, False),
    "tf32": ("tf32", None, False),
    "amp": ("bfloat16", None, False),
    "graph": ("bfloat16", None, True),
    "compiled": ("bfloat16", "default", True),
    "split": ("bfloat16", "default", True),
    "tuned": ("bfloat16", "max-autotune-no-cudagraphs", True),
}


def step_time(model, mode, B, T, steps, device):
    """The median of a training step's milliseconds: forward, mean loss, backward, Adamax."""
    precision, compilation, graphed = MODES[mode]
    cuda = device == "cuda"
    graphed = graphed and cuda
    model.split = mode == "split"
    allow_tf32(precision != "float32")
    options = {"foreach": True} if mode != "eager" else {}
    if graphed:
        options["capturable"] = True
    optimizer = torch.optim.Adamax(model.parameters(), lr=model.lr, **options)
    data = torch.randint(0, V, (16, B, T + 1), device=device)
    x, y = data[0, :, :-1].clone(), data[0, :, 1:].clone()

    def forward():
        return F.cross_entropy(model(x).float().view(-1, V), y.view(-1))

    update = optimizer.step
    if compilation:
        torch._dynamo.reset()  # else a second batch size would be compiled for any batch size
        if model.name == "lstm":
            model.recurrence = torch._dynamo.disable(model.recurrence)
        forward = torch.compile(forward, mode=compilation, dynamic=False)
        update = torch.compile(update, dynamic=False)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = forward()
        loss.backward()
        update()

    go = step
    if graphed:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(5):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            step()
        go = graph.replay
    for _ in range(5 if cuda else 2):
        go()
    times, begun = [], time.perf_counter()
    for i in range(steps):
        x.copy_(data[i % 16, :, :-1])
        y.copy_(data[i % 16, :, 1:])
        if cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            go()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            start = time.perf_counter()
            go()
            times.append(1e3 * (time.perf_counter() - start))
        if cuda and i >= 9 and time.perf_counter() - begun > 4:
            break
    return statistics.median(times)


def limits():
    """The card's own ceilings: device copy (bytes read and written) and matrix products of random numbers."""
    allow_tf32(False)
    a = torch.empty(1 << 29, dtype=torch.float32, device="cuda").normal_()
    b = torch.empty_like(a)

    def seconds(work, n=10):
        for _ in range(3):
            work()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(n):
            work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / n * 1e-3

    found = {"copy_TB_s": 2 * a.numel() * 4 / seconds(lambda: b.copy_(a)) / 1e12}
    for name, dtype in (("bf16_TFLOP_s", torch.bfloat16), ("fp32_TFLOP_s", torch.float32)):
        m, w = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
        found[name] = 2 * 8192 ** 3 / seconds(lambda: torch.mm(m, w)) / 1e12
    return found


def time_steps(o, names, modes, batches):
    where = torch.cuda.get_device_name() if o.device == "cuda" else "cpu, %d threads" % torch.get_num_threads()
    head, rows = {"torch": torch.__version__, "device": where, "window": o.window}, []
    if o.device == "cuda":
        head.update(limits())
        torch.cuda.empty_cache()
    print(head, flush=True)

    def keep():  # row by row: what stops the program does not lose them
        if o.json:
            try:
                with open(o.json, "w") as file:
                    json.dump({"head": head, "rows": rows}, file, indent=1)
            except OSError as problem:
                fail("%s: it cannot be written: %s" % (o.json, problem.strerror))

    keep()
    if o.limits:
        return
    print("%-5s %-9s %6s %12s %14s %12s" % ("model", "mode", "batch", "ms/step", "tokens/s", "GFLOP/s"))
    for name, mode, B in ((n, m, b) for n in names for m in modes for b in batches):
        if name == "gpt" and mode == "split":
            continue
        gc.collect()  # the model before this one, with its graph and all its memory
        if o.device == "cuda":
            torch.cuda.empty_cache()
        try:
            torch.manual_seed(0)
            model = MODELS[name](o.dropout).to(o.device)
            ms, flops = step_time(model, mode, B, o.window, o.steps, o.device), model.flops(B, o.window)
        except Exception as problem:  # what this PyTorch or this memory lacks is a row that says so, not a lost table
            why = (str(problem) or type(problem).__name__).splitlines()[0]
            print("%-5s %-9s %6d failed: %s" % (name, mode, B, why[:120]), flush=True)
            rows.append({"model": name, "mode": mode, "batch": B, "failed": why})
            keep()
            continue
        finally:
            model = None
        row = {"model": name, "mode": mode, "batch": B, "ms": ms, "tokens_s": B * o.window / ms * 1e3,
               "gflop_s": flops / ms / 1e6}
        rows.append(row)
        print("%-5s %-9s %6d %12.3f %14.0f %12.0f" % (name, mode, B, ms, row["tokens_s"], row["gflop_s"]), flush=True)
        keep()


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one sentence, without the usage
        self.exit(2, "torch_music.py: %s; --help says more\n" % message)


def natural(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError("'%s' is not a whole number above 0" % text)
    return int(text)


def main():
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--model", choices=("gpt", "lstm", "both"), default="both", help="which [both]")
    p.add_argument("--modes", default="eager,amp,compiled", help="which ways to time [eager,amp,compiled]")
    p.add_argument("--batch", default="8,64,512", help="windows in a timed step [8,64,512]")
    p.add_argument("--steps", type=natural, default=50, metavar="N", help="timed steps of each [50]")
    p.add_argument("--limits", action="store_true", help="only what the GPU can do at most")
    p.add_argument("--json", metavar="FILE", help="where the table goes too")
    p.add_argument("--like", metavar="FILE", help="a trainer's dump: weights and batch of --dump")
    p.add_argument("--dump", metavar="FILE", help="repeat the step of --like, write all its tensors")
    p.add_argument("--init", metavar="FILE", help="the model for --eval and --save")
    p.add_argument("--eval", metavar="FILE", help="mean loss of --init on this dataset")
    p.add_argument("--eval-stride", type=natural, default=64, metavar="N", help="every Nth window of it [64]")
    p.add_argument("--save", metavar="FILE", help="write the model: of --init, else a new --model")
    p.add_argument("--double", action="store_true", help="compute in double precision")
    p.add_argument("--dropout", type=float, metavar="F", help="[0.5; with --like 0]")
    p.add_argument("--lr", type=float, metavar="F", help="of --dump [the dump's]")
    p.add_argument("--window", type=natural, default=256, metavar="N", help="tokens in a window [256]")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    o = p.parse_args()
    if bool(o.like) != bool(o.dump):
        p.error("--like and --dump go together")
    if o.like and (o.init or o.eval or o.save):
        p.error("--like goes with --dump only, not with --init, --eval or --save")
    if o.eval and not o.init:
        p.error("--eval needs the model, --init FILE")
    if o.init and not (o.eval or o.save):
        p.error("--init needs --eval FILE or --save FILE")
    if o.save and not o.init and o.model == "both":
        p.error("--save needs --init FILE, or the --model of a new one, gpt or lstm")
    files = bool(o.like or o.init or o.save)
    if (o.double or o.lr is not None) and not files:
        p.error("--double and --lr are not for timing")
    if o.dropout is None:
        o.dropout = 0.0 if files else 0.5
    if not 0 <= o.dropout < 1:
        p.error("--dropout must be at least 0 and below 1")
    if o.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: this PyTorch finds no GPU; try --device cpu")
    if not files:
        names, modes, batches = [o.model] if o.model != "both" else ["gpt", "lstm"], o.modes.split(","), []
        if not set(modes) <= set(MODES):
            p.error("--modes %s: they are %s" % (o.modes, ", ".join(MODES)))
        if o.limits and o.device != "cuda":
            p.error("--limits are a GPU's")
        try:
            batches = [natural(text) for text in o.batch.split(",")]
        except argparse.ArgumentTypeError as problem:
            p.error("--batch: %s" % problem)
        return time_steps(o, names, modes, batches)

    allow_tf32(False)
    dump, metadata = {}, {}
    if o.like:
        dump, metadata = read(o.like)
        weights = {name[len("param."):]: tensor for name, tensor in dump.items() if name.startswith("param.")}
        if not weights or "input" not in dump or "target" not in dump:
            fail("%s: it is no dump of a trainer, which has input, target and param.*" % o.like)
        model = model_of(weights, o.like, o.dropout)
    else:
        model = model_of(read(o.init)[0], o.init, o.dropout) if o.init else MODELS[o.model](o.dropout)
    model = model.to(o.device, torch.float64 if o.double else None)
    if o.like:
        repeat_step(model, dump, metadata, o.lr, o.dump)
    if o.eval:
        evaluate(model, o.eval, o.window, o.eval_stride)
    if o.save:
        write(o.save, dict(model.state_dict()), metadata_of(model))


if __name__ == "__main__":
    main()
