"""The faults that are planted in the CPU kernels, one for each thing that a kernel can get wrong.

A fault replaces one piece of text, which must occur in its file exactly once, so that a kernel that has changed is
noticed here rather than left untested.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Text of a file in csrc/cpu and what replaces it; `family` and `direction` name the tests that must fail."""

    name: str
    file: str
    old: str
    new: str
    family: str
    direction: str
    isa: str = "avx2"


def _depthwise(direction: str, layout: str, *faults: tuple[str, str, str]) -> tuple[Fault, ...]:
    file = f"depthwise_{direction}_{layout}.h"
    return tuple(Fault(name, file, old, new, "depthwise", direction) for name, old, new in faults)


def _narrow(*faults: tuple[str, str, str, str]) -> tuple[Fault, ...]:
    """Faults of the kernels for narrow planes, with the direction that must notice. Only AVX-512 has them."""
    file = "depthwise_narrow_nchw.h"
    return tuple(
        Fault(f"narrow planes: {name}", file, old, new, "depthwise", direction, "avx512")
        for name, old, new, direction in faults
    )


FAULTS: tuple[Fault, ...] = (
    *_depthwise(
        "forward",
        "nhwc",
        ("bound of the rows", "h >= p.H) continue;", "h >= p.H - 1) continue;"),
        ("taps swapped", "taps[s] = {s * p.dilation_w - p.pad_w, s}",
         "taps[s] = {s * p.dilation_w - p.pad_w, p.S - 1 - s}"),
        ("bias dropped", "bias ? packed_bias.data() : nullptr,", "nullptr,"),
        ("bias of the wrong channel", "if (call.bias) call.bias += p.C;", ""),
        ("stride ignored", "(out_h + o) * p.stride_h + r", "(out_h + o) + r"),
    ),
    *_depthwise(
        "backward_input",
        "nhwc",
        ("bound of the rows", "offset / p.stride_h >= p.P) continue;", "offset / p.stride_h >= p.P - 1) continue;"),
        ("taps swapped", "{offset / p.stride_w, s}", "{offset / p.stride_w, p.S - 1 - s}"),
        ("multiplier ignored", "rows.add(o, pixels + j * p.C, filter", "rows.add(o, pixels, filter"),
    ),
    *_depthwise(
        "backward_weight",
        "nhwc",
        ("bound of the columns", "const int64_t end = row.p.W - column;", "const int64_t end = row.p.W - column - 1;"),
        ("bias counted again", "if (first_r == 0) {", "if (first_r >= 0) {"),
        ("parts dropped", "part < tasks.row_parts; ++part) total", "part < 1; ++part) total"),
        ("last row of a part dropped", "end_row = (part + 1) * rows / tasks.row_parts;",
         "end_row = (part + 1) * rows / tasks.row_parts - (part + 1 < tasks.row_parts);"),
        ("last channels of a vector dropped", "i < min(kWidth, p.C - c); ++i) {",
         "i < min(kWidth - 1, p.C - c); ++i) {"),
    ),
    Fault("rows that share a source: filter row of the first", "depthwise_backward_weight_nhwc.h",
          "const int r = h - o * kStep;", "const int r = h - 0 * o * kStep;", "depthwise", "backward_weight", "avx512"),
    Fault("rows that share a source: beyond the image", "depthwise_backward_weight_nhwc.h",
          "min(end_row - index, p.P - out_h)", "end_row - index", "depthwise", "backward_weight", "avx512"),
    *_depthwise(
        "forward",
        "nchw",
        ("dilation ignored", "l % p.S * p.dilation_w - p.pad_w", "l % p.S - p.pad_w"),
        ("bias dropped", "call.bias ? load_scalar<A>(call.bias + k) : A(0)", "A(0)"),
        ("stores beyond the row", "rows, static_cast<int>(min(V::kWidth, p.Q - q)));", "rows, V::kWidth);"),
    ),
    *_depthwise(
        "backward_input",
        "nchw",
        ("taps swapped", "row_taps.taps(a)[i] * p.S + column_taps.taps(b)[l];",
         "row_taps.taps(a)[i] * p.S + p.S - 1 - column_taps.taps(b)[l];"),
        ("class of the wrong row", "T* out = dx + a * p.x_strides.h",
         "T* out = dx + (p.stride_h - 1 - a) * p.x_strides.h"),
        ("stores beside the class", "out + j * p.stride_w + b, dx_stride", "out + j * p.stride_w + b + 1, dx_stride"),
    ),
    *_depthwise(
        "backward_weight",
        "nchw",
        ("bias dropped", "if (first == 0) memory[columns * kR] += dy;", "if (first == 1) memory[columns * kR] += dy;"),
        ("taps turned", "finish(l * taps_in_column + r, r * p.S + l)", "finish(r * p.S + l, r * p.S + l)"),
        ("row beyond the plane", "static_cast<uint64_t>(first_row + h) <", "static_cast<uint64_t>(first_row + h) <="),
        ("last rows dropped", "for (; i < p.P; ++i) block(", "for (; i + 1 < p.P; ++i) block("),
        ("parts dropped", "for (int64_t part = 0; part < parts; ++part) total",
         "for (int64_t part = 0; part < 1; ++part) total"),
    ),
    Fault("packed filter: multiplier", "depthwise_correlate_nhwc.h", "w + (c * multiplier + j) * taps_;",
          "w + c * multiplier * taps_;", "depthwise", "forward"),
    Fault("packed filter: lanes of the last vector", "depthwise_correlate_nhwc.h", "lanes = min(kWidth, p.C - c);",
          "lanes = min(kWidth, p.C - c - 1);", "depthwise", "backward_input"),
    Fault("packed filter: rows", "depthwise_correlate_nhwc.h", "j * group_ + r * S_ * kWidth",
          "j * group_ + r * kWidth", "depthwise", "forward"),
    Fault("bound of the columns", "depthwise_correlate_nhwc.h", "kTaps, row.source_width - column);",
          "kTaps, row.source_width - column - 1);", "depthwise", "forward"),
    Fault("any filter: column beyond the row", "depthwise_correlate_nhwc.h", "c >= 0 && c < row.source_width",
          "c >= 0 && c <= row.source_width", "depthwise", "forward"),
    Fault("taps of a column swapped", "depthwise_correlate_nchw.h",
          "l * weights.column_stride + r * weights.row_stride",
          "l * weights.column_stride + (kR - 1 - r) * weights.row_stride", "depthwise", "backward_input"),
    Fault("bound of the rows", "depthwise_source_nchw.h", "min(count, shape_.height - first_row));",
          "min(count, shape_.height + 1 - first_row));", "depthwise", "forward"),
    *_narrow(
        ("dilation ignored", "p.dilation_h == 1 && p.dilation_w == 1 && p.stride_h == p.stride_w",
         "p.dilation_h == 1 && p.stride_h == p.stride_w", "forward"),
        ("second row of a pair beyond the plane", "(is_inside(row + 1) ? low_bits", "(is_inside(row) ? low_bits",
         "forward"),
        ("row beyond the plane", "return is_inside(row) ? data_", "return is_inside(row - 1) ? data_", "forward"),
        ("column beyond the plane", "row < (kPairs ? 2 : 1) && column >= 0 && column < shape.width;",
         "row < (kPairs ? 2 : 1) && column >= 0 && column <= shape.width;", "backward_input"),
        ("second row of a pair is the first", "const int64_t start = row * (", "const int64_t start = 0 * row * (",
         "forward"),
        ("stride 2: second row of a pair too early", "V::load(row_at(row + 2), low_)", "V::load(row_at(row + 1), low_)",
         "forward"),
        ("stride 2: half of a row dropped", "V::load(row_at(row) + V::kWidth, high_)", "V::zero()", "forward"),
        ("x under no row kept", "kOneRow ? first_picks_ : picks_;", "kOneRow ? picks_ : picks_;", "backward_weight"),
        ("taps turned", "sums[s][r] = fma(x[s]", "sums[r][s] = fma(x[s]", "backward_weight"),
        ("stores beyond the rows", "const int64_t stored = min(2, rows - 2 * i);", "const int64_t stored = 2;",
         "backward_input"),
    ),
    Fault("stride 2: row below the plane", "depthwise_backward_input_nchw_stride2.h", "i + 1 < p.P ? row",
          "i < p.P ? row", "depthwise", "backward_input"),
    Fault("stride 2: odd row beyond the plane", "depthwise_backward_input_nchw_stride2.h", "2 * i + 1 < p.H;",
          "2 * i < p.H;", "depthwise", "backward_input"),
    Fault("stride 2: column beside the row", "depthwise_backward_input_nchw_stride2.h",
          "V::load(from + shift, lanes - shift)", "V::load(from + shift, lanes)", "depthwise", "backward_input"),
    Fault("stride 2: taps swapped", "depthwise_backward_input_nchw_stride2.h",
          "fma(under, weights[0][2], fma(beside, weights[0][0], odd))",
          "fma(under, weights[0][0], fma(beside, weights[0][2], odd))", "depthwise", "backward_input"),
    Fault("relu6 at 5", "depthwise_common.h", "Activation::kRelu6 ? A(6)", "Activation::kRelu6 ? A(5)",
          "depthwise", "forward"),
    Fault("ties rounded up", "simd_baseline.h", "bits + 0x7fffu + ((bits >> 16) & 1u)", "bits + 0x8000u",
          "depthwise", "forward", "baseline"),
    Fault("taps swapped", "grouped_pass.h", "s * p.dilation_w - p.pad_w, r * p.S + s};",
          "s * p.dilation_w - p.pad_w, r * p.S + p.S - 1 - s};", "grouped", "forward"),
    Fault("taps swapped", "grouped_pass.h", "dw / p.stride_w, r * p.S + s};",
          "dw / p.stride_w, r * p.S + p.S - 1 - s};",
          "grouped", "backward_input"),
    Fault("class of the wrong pixel", "grouped_pass.h", "f(pass, h0 * x.h + w0 * x.w);",
          "f(pass, w0 * x.h + h0 * x.w);",
          "grouped", "backward_input"),
    Fault("gaps between rows forgotten", "grouped_pass.h",
          "if (in.h != pass.in_w * in.w || out.h != pass.out_w * out.w) return;", "", "pointwise", "forward"),
    Fault("gaps between rows forgotten", "grouped_backward_weight.h",
          "if (x.h != p_.W * x.w || y.h != p_.Q * y.w) return;", "", "pointwise", "backward_weight"),
    Fault("few pixels: bias dropped", "grouped_few_pixels.h", "(bias_ == nullptr ? A(0) : bias_[m + j])", "A(0)",
          "pointwise", "forward"),
    Fault("pixel rows: blocks of the depth overwrite", "grouped_pixel_rows.h", "tile.accumulate = s0 > 0 || d0 > 0;",
          "tile.accumulate = s0 > 0;", "pointwise", "forward"),
    Fault("pixel rows: last pixels dropped", "grouped_pixel_rows.h", "i < pixels; i += kTileRows) {",
          "i + kTileRows <= pixels; i += kTileRows) {", "grouped", "forward"),
    Fault("pixel columns: blocks of channels overwrite", "grouped_pixel_columns.h", "tile.accumulate = c0 > 0;",
          "tile.accumulate = false;", "pointwise", "forward"),
    Fault("pixel columns: bias of the wrong channel", "grouped_pixel_columns.h",
          "tile.row_bias = bias == nullptr ? nullptr : bias + m;", "tile.row_bias = bias;", "pointwise", "forward"),
    Fault("bound of the rows", "grouped_pixel_table.h", "h + i >= 0 && h + i < pass_.in_h;",
          "h + i >= 0 && h + i < pass_.in_h - 1;", "grouped", "forward"),
    Fault("bound of the columns", "grouped_pixel_table.h", "row_inside && w >= 0 && w < pass_.in_w",
          "row_inside && w >= 0 && w <= pass_.in_w", "grouped", "forward"),
    Fault("narrow groups: padding lanes kept", "grouped_narrow.h", "for (int64_t c = 0; c < width; ++c) {",
          "for (int64_t c = 0; c < width - (width > 1); ++c) {", "grouped", "forward"),
    Fault("narrow groups: taps turned", "grouped_narrow_backward_weight.h", "x_source_.tap_h(t) * x.pitch_h",
          "x_source_.tap_w(t) * x.pitch_h", "grouped", "backward_weight"),
    Fault("narrow groups: end of a share dropped", "grouped_narrow_backward_weight.h",
          "rectangles_.count() * (partial + 1) / partials;",
          "rectangles_.count() * (partial + 1) / partials - (partial > 0);", "grouped", "backward_weight"),
    Fault("last pixel of a row dropped", "grouped_backward_weight.h",
          "end = min(end, offset >= size ? 0 : ceil_div(size - offset, stride));",
          "end = min(end, offset >= size ? 0 : (size - offset) / stride);", "grouped", "backward_weight"),
    Fault("first block of a share adds", "grouped_backward_weight.h", "rows, block > first, target);",
          "rows, block > 0, target);", "grouped", "backward_weight"),
    Fault("shares dropped", "grouped_backward_weight.h", "for (int64_t partial = 1; partial < partials_;",
          "for (int64_t partial = 1; partial < 1;", "grouped", "backward_weight"),
    Fault("bias: tail of the row dropped", "grouped_backward_weight.h", "if (q < p.Q) sum += V::load(row + q,",
          "if (q > p.Q) sum += V::load(row + q,", "grouped", "backward_weight"),
    Fault("rows of a tile swapped", "gemm_tile.h", "a[i] = t.a[s * kTileRows + i];",
          "a[i] = t.a[s * kTileRows + (i ? i : kRows - 1)];", "pointwise", "backward_input"),
    Fault("stores beyond the columns", "gemm_tile.h", "if (last && tail < kWidth) {", "if (last && tail < 0) {",
          "pointwise", "forward"),
)  # fmt: skip
