"""Networks of published programs as formulas on their own state dicts, written for these tests.

Each makes the weights that it does not find, so that a first call writes the layout of its file.
"""

import math

import torch
from torch.nn import functional as F


class Weights(dict):
    """A state dict that makes what is asked for: random, float64, in the order of asking."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name, *shape):
        if name not in self:
            fan = math.prod(shape[1:]) or 1
            made = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            around = 1 if len(shape) == 1 and name.endswith("weight") else 0
            # What float32 holds, since files do.
            self[name] = (around + made / math.sqrt(fan) * (0.3 if len(shape) == 1 else 1)).float()
        return self[name].double()

    def linear(self, name, x, out, bias=True):
        return F.linear(
            x,
            self(f"{name}.weight", out, x.shape[-1]),
            self(f"{name}.bias", out) if bias else None,
        )

    def conv(self, name, x, out, k=3, **how):
        w = self(f"{name}.weight", out, x.shape[1], k, k)
        return F.conv2d(x, w, self(f"{name}.bias", out), **{"padding": k // 2} | how)

    def norm(self, name, x, groups, eps):
        c = x.shape[1]
        w, b = self(f"{name}.weight", c), self(f"{name}.bias", c)
        return F.group_norm(x, groups, w, b, eps)


def waves(t, frequencies, sines_first):
    angle = t.double()[:, None] * frequencies.double()
    pair = (angle.sin(), angle.cos())
    return torch.cat(pair if sines_first else pair[::-1], dim=1)


def softmaxed(q, k, v):
    """Attention over the last axis, (B, heads, channels, N) each."""
    w = torch.einsum("bhcq,bhck->bhqk", q, k / math.sqrt(q.shape[2])).softmax(-1)
    return torch.einsum("bhqk,bhck->bhcq", w, v)


def guided(w, x, t, y=None, *, mc, mult, blocks, attends, out, heads, ordered, shifts, updown,
           classes=None, context=None):  # fmt: skip
    """The U-Net of guided-diffusion, and that of CompVis, which may attend to a context."""
    half = mc // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    emb = w.linear("time_embed.0", waves(t, frequencies, False), 4 * mc)
    emb = w.linear("time_embed.2", F.silu(emb), 4 * mc)
    if classes:
        emb = emb + w("label_emb.weight", classes, 4 * mc)[y]

    def res(name, h, c, change=lambda z: z):
        z = change(F.silu(w.norm(f"{name}.in_layers.0", h, 32, 1e-5)))
        z = w.conv(f"{name}.in_layers.2", z, c)
        e = w.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * c if shifts else c)[:, :, None, None]
        if shifts:
            scale, shift = e.chunk(2, 1)
            z = w.norm(f"{name}.out_layers.0", z, 32, 1e-5) * (1 + scale) + shift
        else:
            z = w.norm(f"{name}.out_layers.0", z + e, 32, 1e-5)
        z = w.conv(f"{name}.out_layers.3", F.silu(z), c)
        h = change(h)
        return z + (h if h.shape[1] == c else w.conv(f"{name}.skip_connection", h, c, 1))

    def attention(name, h):
        c = h.shape[1]
        if context is not None:
            return transformer(w, name, h, context, heads)
        flat = w.norm(f"{name}.norm", h.flatten(2), 32, 1e-5)
        qkv = F.conv1d(flat, w(f"{name}.qkv.weight", 3 * c, c, 1), w(f"{name}.qkv.bias", 3 * c))
        if ordered:
            q, k, v = (z.unflatten(1, (heads, -1)) for z in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.unflatten(1, (heads, 3, -1)).unbind(2)
        z = softmaxed(q, k, v).flatten(1, 2)
        z = F.conv1d(z, w(f"{name}.proj_out.weight", c, c, 1), w(f"{name}.proj_out.bias", c))
        return h + z.reshape(h.shape)

    def halved(z):
        return F.avg_pool2d(z, 2)

    def doubled(z):
        return F.interpolate(z, scale_factor=2, mode="nearest")

    h = w.conv("input_blocks.0.0", x, mc * mult[0])
    skips, place = [h], 1
    for i, m in enumerate(mult):
        for _ in range(blocks):
            h = res(f"input_blocks.{place}.0", h, mc * m)
            h = attention(f"input_blocks.{place}.1", h) if i in attends else h
            skips.append(h)
            place += 1
        if i < len(mult) - 1:
            name = f"input_blocks.{place}.0"
            h = (
                res(name, h, mc * m, halved)
                if updown
                else w.conv(f"{name}.op", h, mc * m, stride=2)
            )
            skips.append(h)
            place += 1
    h = res("middle_block.0", h, h.shape[1])
    h = res("middle_block.2", attention("middle_block.1", h), h.shape[1])
    place = 0
    for i, m in reversed(list(enumerate(mult))):
        for j in range(blocks + 1):
            h = res(f"output_blocks.{place}.0", torch.cat([h, skips.pop()], 1), mc * m)
            h = attention(f"output_blocks.{place}.1", h) if i in attends else h
            if i and j == blocks:
                name = f"output_blocks.{place}.{1 + (i in attends)}"
                h = res(name, h, mc * m, doubled) if updown else w.conv(
                    f"{name}.conv", doubled(h), mc * m
                )  # fmt: skip
            place += 1
    return w.conv("out.2", F.silu(w.norm("out.0", h, 32, 1e-5)), out)


def layer_norm(w, name, x):
    c = x.shape[-1]
    return F.layer_norm(x, (c,), w(f"{name}.weight", c), w(f"{name}.bias", c))


def attend(w, name, x, context, heads):
    """Attention of tokens (B, N, C) to a context, with linear layers."""
    c = x.shape[-1]
    q, k, v = (
        w.linear(f"{name}.to_{n}", y, c, bias=False).transpose(1, 2).unflatten(1, (heads, -1))
        for n, y in (("q", x), ("k", context), ("v", context))
    )
    return w.linear(f"{name}.to_out.0", softmaxed(q, k, v).flatten(1, 2).transpose(1, 2), c)


def transformer(w, name, h, context, heads):
    """The block of Stable Diffusion 1 that attends to pixels, then to the context."""
    c = h.shape[1]
    z = w.conv(f"{name}.proj_in", w.norm(f"{name}.norm", h, 32, 1e-6), c, 1)
    z, at = z.flatten(2).transpose(1, 2), f"{name}.transformer_blocks.0"
    y = layer_norm(w, f"{at}.norm1", z)
    z = z + attend(w, f"{at}.attn1", y, y, heads)
    z = z + attend(w, f"{at}.attn2", layer_norm(w, f"{at}.norm2", z), context, heads)
    y, gate = w.linear(f"{at}.ff.net.0.proj", layer_norm(w, f"{at}.norm3", z), 8 * c).chunk(2, -1)
    z = z + w.linear(f"{at}.ff.net.2", y * F.gelu(gate), c)
    return h + w.conv(f"{name}.proj_out", z.transpose(1, 2).reshape(h.shape), c, 1)


class Autoencoder:
    """The first stage of CompVis, with its formulas."""

    def __init__(self, w, ch=32, mult=(1, 2), blocks=1, z=4, vq=None):
        self.w, self.ch, self.mult, self.blocks, self.z, self.vq = w, ch, mult, blocks, z, vq

    def _norm(self, name, h):
        return self.w.norm(name, h, 32, 1e-6)

    def _block(self, name, h, c):
        z = self.w.conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", h)), c)
        z = self.w.conv(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", z)), c)
        return z + (h if h.shape[1] == c else self.w.conv(f"{name}.nin_shortcut", h, c, 1))

    def _middle(self, half, h):
        c = h.shape[1]
        h = self._block(f"{half}.mid.block_1", h, c)
        y, at = self._norm(f"{half}.mid.attn_1.norm", h), f"{half}.mid.attn_1"
        q, k, v = (self.w.conv(f"{at}.{n}", y, c, 1).flatten(2)[:, None] for n in "qkv")
        h = h + self.w.conv(f"{at}.proj_out", softmaxed(q, k, v).reshape(h.shape), c, 1)
        return self._block(f"{half}.mid.block_2", h, c)

    def encode(self, x):
        """The moments of the latents, or the latents."""
        h = self.w.conv("encoder.conv_in", x, self.ch)
        for i, m in enumerate(self.mult):
            for j in range(self.blocks):
                h = self._block(f"encoder.down.{i}.block.{j}", h, self.ch * m)
            if i < len(self.mult) - 1:
                name = f"encoder.down.{i}.downsample.conv"
                h = self.w.conv(name, F.pad(h, (0, 1, 0, 1)), h.shape[1], stride=2, padding=0)
        h = F.silu(self._norm("encoder.norm_out", self._middle("encoder", h)))
        n = self.z if self.vq else 2 * self.z
        return self.w.conv("quant_conv", self.w.conv("encoder.conv_out", h, n), n, 1)

    def decode(self, z):
        if self.vq:
            table = self.w("quantize.embedding.weight", self.vq, self.z)
            flat = z.movedim(1, -1)
            z = table[torch.cdist(flat.reshape(-1, self.z), table).argmin(1)]
            z = z.reshape(flat.shape).movedim(-1, 1)
        h = self.w.conv("post_quant_conv", z, self.z, 1)
        h = self._middle("decoder", self.w.conv("decoder.conv_in", h, self.ch * self.mult[-1]))
        for i, m in reversed(list(enumerate(self.mult))):
            for j in range(self.blocks + 1):
                h = self._block(f"decoder.up.{i}.block.{j}", h, self.ch * m)
            if i:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = self.w.conv(f"decoder.up.{i}.upsample.conv", h, h.shape[1])
        return self.w.conv("decoder.conv_out", F.silu(self._norm("decoder.norm_out", h)), 3)


def filtered(x, taps, up=False, pad=None):
    """Halved or doubled with a separable filter."""
    f = torch.tensor(taps, dtype=torch.float64)
    f = torch.outer(f, f) / f.sum() ** 2
    c, pad = x.shape[1], (len(taps) - 1) // 2 if pad is None else pad
    if up:
        return F.conv_transpose2d(x, (4 * f).expand(c, 1, -1, -1), stride=2, padding=pad, groups=c)
    return F.conv2d(x, f.expand(c, 1, -1, -1), stride=2, padding=pad, groups=c)


def edm_unet(w, x, noise, label=None, *, mc, mult, blocks, attends, size, out, kind, classes=0,
             noise_mult=1, fourier=False, residual=False, taps=(1, 1)):  # fmt: skip
    """SongUNet or DhariwalUNet of EDM, within the prefix "model."; ``label`` is one-hot."""
    song = kind == "song"
    n, emb_channels = mc * (noise_mult if song else 1), 4 * mc
    eps, skip_scale = (1e-6, math.sqrt(0.5)) if song else (1e-5, 1.0)
    if fourier:
        w("model.map_noise.freqs", n // 2)
        frequencies = 2 * math.pi * w["model.map_noise.freqs"]  # a float32 product, as there
    else:
        ramp = torch.arange(n // 2, dtype=torch.float32) / (n // 2 - (1 if song else 0))
        frequencies = (1 / 10000) ** ramp
    emb = waves(noise, frequencies, song)  # SongUNet exchanges the cosines and the sines
    label = torch.zeros(len(x), classes, dtype=torch.float64) if label is None else label
    if song:
        if classes:
            emb = emb + w.linear("model.map_label", label * math.sqrt(classes), n)
        w("model.map_augment.weight", n, 9)  # augmentation labels are zero when sampling
        emb = F.silu(w.linear("model.map_layer0", emb, emb_channels))
        emb = F.silu(w.linear("model.map_layer1", emb, emb_channels))
    else:
        w("model.map_augment.weight", n, 9)
        emb = F.silu(w.linear("model.map_layer0", emb, emb_channels))
        emb = w.linear("model.map_layer1", emb, emb_channels)
        if classes:
            emb = emb + w.linear("model.map_label", label, emb_channels, bias=False)
        emb = F.silu(emb)

    def norm(name, h):
        return w.norm(name, h, min(32, h.shape[1] // 4), eps)

    def block(name, h, c, attends=False, change=None):
        name = f"model.{name}"
        same = (lambda z: z) if change is None else lambda z: filtered(z, taps, change == "up")
        z = w.conv(f"{name}.conv0", same(F.silu(norm(f"{name}.norm0", h))), c)
        if song:
            e = w.linear(f"{name}.affine", emb, c)[:, :, None, None]
            z = F.silu(norm(f"{name}.norm1", z + e))
        else:
            scale, shift = w.linear(f"{name}.affine", emb, 2 * c)[:, :, None, None].chunk(2, 1)
            z = F.silu(shift + norm(f"{name}.norm1", z) * (scale + 1))
        z = w.conv(f"{name}.conv1", z, c)
        h_changed = same(h)
        if h.shape[1] != c or (change and song):
            h_changed = w.conv(f"{name}.skip", h_changed, c, 1)
        h = (z + h_changed) * skip_scale
        if attends:
            heads = 1 if song else c // 64
            qkv = w.conv(f"{name}.qkv", norm(f"{name}.norm2", h), 3 * c, 1)
            q, k, v = qkv.reshape(len(h) * heads, c // heads, 3, -1).unbind(2)
            a = softmaxed(q[:, None], k[:, None], v[:, None])
            h = (w.conv(f"{name}.proj", a.reshape(h.shape), c, 1) + h) * skip_scale
        return h

    skips, aux, h = [], x, x
    for i, m in enumerate(mult):
        at = f"{size >> i}x{size >> i}"
        if i == 0:
            h = w.conv(f"model.enc.{at}_conv", h, mc)
            skips.append(h)
        else:
            h = block(f"enc.{at}_down", h, h.shape[1], change="down")
            skips.append(h)
            if residual:
                name, pad = f"model.enc.{at}_aux_residual", 1 + (len(taps) - 1) // 2
                z = F.conv2d(aux, w(f"{name}.weight", h.shape[1], aux.shape[1], 3, 3), padding=pad)
                z = filtered(z, taps, pad=0) + w(f"{name}.bias", h.shape[1])[:, None, None]
                h = skips[-1] = aux = (h + z) / math.sqrt(2)
        for j in range(blocks):
            h = block(f"enc.{at}_block{j}", h, mc * m, i in attends)
            skips.append(h)
    for i, m in reversed(list(enumerate(mult))):
        at = f"{size >> i}x{size >> i}"
        if i == len(mult) - 1:
            h = block(f"dec.{at}_in0", h, mc * m, True)
            h = block(f"dec.{at}_in1", h, mc * m)
        else:
            h = block(f"dec.{at}_up", h, h.shape[1], change="up")
        for j in range(blocks + 1):
            once = i in attends and (not song or j == blocks)
            h = block(f"dec.{at}_block{j}", torch.cat([h, skips.pop()], 1), mc * m, once)
    end = f"model.dec.{size}x{size}_aux_" if song else "model.out_"
    return w.conv(f"{end}conv", F.silu(norm(f"{end}norm", h)), out)


def ncsnpp(w, x, told, *, nf, mult, blocks, attends, size, fourier, pictured, centered, by_sigma):
    """NCSN++ of score_sde with BigGAN blocks; ``told`` is sigma, or 999 t."""
    taps = (1, 3, 3, 1) if pictured else (1, 1)
    place = iter(range(10**6))

    def name():
        return f"module.all_modules.{next(place)}"

    if fourier:
        w("module.all_modules.0.W", nf)
        frequencies = 2 * math.pi * w[f"{name()}.W"]  # a float32 product
        temb = waves(told.log(), frequencies, True)
    else:
        half = nf // 2
        ramp = torch.arange(half, dtype=torch.float32)
        temb = waves(told, torch.exp(ramp * -(math.log(10000) / (half - 1))), True)
    temb = w.linear(name(), temb, 4 * nf)
    temb = w.linear(name(), F.silu(temb), 4 * nf)

    def norm(at, h):
        return w.norm(at, h, min(h.shape[1] // 4, 32), 1e-6)

    def res(h, c, change=None):
        at = name()
        same = (lambda z: z) if change is None else lambda z: filtered(z, taps, change == "up")
        z = w.conv(f"{at}.Conv_0", same(F.silu(norm(f"{at}.GroupNorm_0", h))), c)
        z = z + w.linear(f"{at}.Dense_0", F.silu(temb), c)[:, :, None, None]
        z = w.conv(f"{at}.Conv_1", F.silu(norm(f"{at}.GroupNorm_1", z)), c)
        changed = same(h)
        if h.shape[1] != c or change:
            changed = w.conv(f"{at}.Conv_2", changed, c, 1)
        return (changed + z) / math.sqrt(2)

    def nin(at, h):
        c = h.shape[1]
        return (
            torch.einsum("bchw,cd->bdhw", h, w(f"{at}.W", c, c)) + w(f"{at}.b", c)[:, None, None]
        )

    def attention(h):
        at = name()
        z = norm(f"{at}.GroupNorm_0", h)
        q, k, v = (nin(f"{at}.NIN_{i}", z).flatten(2)[:, None] for i in range(3))
        z = softmaxed(q, k, v).reshape(h.shape)
        return (h + nin(f"{at}.NIN_3", z)) / math.sqrt(2)

    h0 = x if centered else 2 * x - 1
    aux = h0
    skips = [w.conv(name(), h0, nf)]
    for i, m in enumerate(mult):
        for _ in range(blocks):
            h = res(skips[-1], nf * m)
            skips.append(attention(h) if i in attends else h)
        if i < len(mult) - 1:
            h = res(skips[-1], nf * m, "down")
            if pictured:
                at = name()
                pads = (len(taps) - 2 + 2 + 1) // 2
                f = torch.tensor(taps, dtype=torch.float64)
                f = (torch.outer(f, f) / f.sum() ** 2).expand(aux.shape[1], 1, -1, -1)
                aux = F.conv2d(F.pad(aux, (pads, pads, pads, pads)), f, groups=aux.shape[1])
                aux = w.conv(f"{at}.Conv2d_0", aux, nf * m, stride=2, padding=0)
                h = aux = (aux + h) / math.sqrt(2)
            skips.append(h)
    h = res(attention(res(skips[-1], nf * mult[-1])), nf * mult[-1])
    for i, m in reversed(list(enumerate(mult))):
        for _ in range(blocks + 1):
            h = res(torch.cat([h, skips.pop()], 1), nf * m)
        if i in attends:
            h = attention(h)
        if i:
            h = res(h, nf * m, "up")
    h = F.silu(norm(name(), h))
    h = w.conv(name(), h, x.shape[1])
    return h / told.reshape(-1, 1, 1, 1) if by_sigma else h


def lucid(w, x, t, *, dim, mult, full=(), heads=4, each=32, out=3, told=None):
    """The U-Net of denoising-diffusion-pytorch 2; ``told`` is an estimate of x0, before x."""
    half = dim // 2
    ramp = torch.arange(half) * -(math.log(10000) / (half - 1))
    temb = w.linear("time_mlp.1", waves(t, torch.exp(ramp), True), 4 * dim)
    temb = w.linear("time_mlp.3", F.gelu(temb), 4 * dim)

    def norm(name, h):
        g = w(f"{name}.g", 1, h.shape[1], 1, 1)
        return h / h.norm(dim=1, keepdim=True).clamp(min=1e-12) * g * h.shape[1] ** 0.5

    def block(name, h, c, change=lambda z: z):
        return F.silu(change(norm(f"{name}.norm", w.conv(f"{name}.proj", h, c))))

    def res(name, h, c):
        e = w.linear(f"{name}.mlp.1", F.silu(temb), 2 * c)[:, :, None, None]
        scale, shift = e.chunk(2, 1)
        z = block(f"{name}.block1", h, c, lambda z: z * (scale + 1) + shift)
        z = block(f"{name}.block2", z, c)
        return z + (h if h.shape[1] == c else w.conv(f"{name}.res_conv", h, c, 1))

    def attention(name, h, linear):
        c, hidden = h.shape[1], heads * each
        qkv = F.conv2d(norm(f"{name}.norm", h), w(f"{name}.to_qkv.weight", 3 * hidden, c, 1, 1))
        q, k, v = (z.flatten(2).unflatten(1, (heads, each)) for z in qkv.chunk(3, 1))
        memory = w(f"{name}.mem_kv", 2, heads, *((each, 4) if linear else (4, each)))
        keys, values = (m if linear else m.mT for m in memory)
        k = torch.cat([keys.expand(len(h), -1, -1, -1), k], -1)
        v = torch.cat([values.expand(len(h), -1, -1, -1), v], -1)
        if linear:
            context = k.softmax(-1) @ v.mT
            z = context.mT @ (q.softmax(-2) * each**-0.5)
        else:
            z = softmaxed(q, k, v)
        z = z.flatten(1, 2).unflatten(2, h.shape[2:])
        z = w.conv(f"{name}.to_out.0" if linear else f"{name}.to_out", z, c, 1)
        return h + (norm(f"{name}.to_out.1", z) if linear else z)

    h = w.conv("init_conv", x if told is None else torch.cat([told, x], 1), dim, 7)
    start, skips, levels = h, [], len(mult)
    for i, m in enumerate(mult):
        c = h.shape[1]
        h = res(f"downs.{i}.0", h, c)
        skips.append(h)
        h = attention(f"downs.{i}.2", res(f"downs.{i}.1", h, c), i not in full)
        skips.append(h)
        if i < levels - 1:
            b, c, height, width = h.shape
            h = h.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
            h = w.conv(f"downs.{i}.3.1", h.reshape(b, 4 * c, height // 2, width // 2), dim * m, 1)
        else:
            h = w.conv(f"downs.{i}.3", h, dim * m)
    h = res("mid_block1", h, h.shape[1])
    h = res("mid_block2", attention("mid_attn", h, False), h.shape[1])
    for k, i in enumerate(reversed(range(levels))):
        c = h.shape[1]
        h = res(f"ups.{k}.0", torch.cat([h, skips.pop()], 1), c)
        h = res(f"ups.{k}.1", torch.cat([h, skips.pop()], 1), c)
        h = attention(f"ups.{k}.2", h, i not in full)
        below = dim * mult[i - 1] if i else dim
        if i:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
        h = w.conv(f"ups.{k}.3.1" if i else f"ups.{k}.3", h, below)
    return w.conv("final_conv", res("final_res_block", torch.cat([h, start], 1), dim), out, 1)


def image_v1(w, x, sigma, *, features, depths, widths, attends, patch=1, variance=False):
    """The network image_v1 of k-diffusion, which takes sigma, with no augmentation told."""
    weight = w("timestep_embed.weight", features // 2, 1)
    frequencies = (2 * math.pi * w["timestep_embed.weight"]).flatten()
    w("mapping_cond.weight", features, 9)
    cond = waves(sigma.log() / 4, frequencies, False)
    cond = F.gelu(w.linear("mapping.0", cond, features))
    cond = F.gelu(w.linear("mapping.2", cond, features))
    assert weight.shape[1] == 1

    def norm(name, h, groups):
        scale, shift = w.linear(f"{name}.mapper", cond, 2 * h.shape[1])[:, :, None, None].chunk(
            2, 1
        )
        return F.group_norm(h, groups, eps=1e-5) * (scale + 1) + shift

    def res(name, h, middle, out):
        z = F.gelu(norm(f"{name}.main.0", h, max(1, h.shape[1] // 32)))
        z = w.conv(f"{name}.main.2", z, middle)
        z = F.gelu(norm(f"{name}.main.4", z, max(1, middle // 32)))
        z = w.conv(f"{name}.main.6", z, out)
        same = h.shape[1] == out
        return z + (h if same else F.conv2d(h, w(f"{name}.skip.weight", out, h.shape[1], 1, 1)))

    def attention(name, h):
        c = h.shape[1]
        heads = max(1, c // 64)
        qkv = w.conv(f"{name}.qkv_proj", norm(f"{name}.norm_in", h, max(1, c // 32)), 3 * c, 1)
        q, k, v = qkv.flatten(2).unflatten(1, (3, heads, -1)).unbind(1)
        z = softmaxed(q, k, v).flatten(1, 2).unflatten(2, h.shape[2:])
        return h + w.conv(f"{name}.out_proj", z, c, 1)

    def filtered_by(h, up):
        f = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
        f = (torch.outer(f, f) * (4 if up else 1)).expand(h.shape[1], 1, -1, -1)
        h = F.pad(h, (1, 1, 1, 1), "reflect")
        if up:
            return F.conv_transpose2d(h, f, stride=2, padding=3, groups=h.shape[1])
        return F.conv2d(h, f, stride=2, groups=h.shape[1])

    def layers(name, h, i, out, place):
        for j in range(depths[i]):
            h = res(f"{name}.{place}", h, widths[i], out if j == depths[i] - 1 else widths[i])
            place += 1
            if i in attends:
                h = attention(f"{name}.{place}", h)
                place += 1
        return h

    h, skips, last = (
        w.conv("proj_in", F.pixel_unshuffle(x, patch), widths[0], 1),
        [],
        len(widths) - 1,
    )
    for i, c in enumerate(widths):
        h = layers(f"u_net.d_blocks.{i}", filtered_by(h, False) if i else h, i, c, 1)
        skips.append(h)
    for k, i in enumerate(reversed(range(last + 1))):
        h = torch.cat([h, skips[i]], 1) if k else h
        h = layers(f"u_net.u_blocks.{k}", h, i, widths[max(0, i - 1)], 0)
        h = filtered_by(h, True) if i else h
    h = w.conv("proj_out", h, x.shape[1] * patch**2 + variance, 1)
    return F.pixel_shuffle(h[:, :-1] if variance else h, patch)
