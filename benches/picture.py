"""Pictures of measurements: lines over logarithmic axes, as SVG."""

import math

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 48, 52
# From the edges of the plot to the first and the last point, so that their figures do not hide those of the axis.
INSET = 24
COLOURS = ["#0b6bcb", "#d1590c", "#3a7d44"]


def plot(title: str, x_label: str, y_label: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """An SVG of lines over two logarithmic axes; over a linear one upwards where the values are close together."""
    x_text = size_text if x_label == "payload" else "{:,}".format
    values = [y for line in lines.values() for _, y in line]
    places = sorted({x for line in lines.values() for x, _ in line})
    is_wide = max(values) > 8 * min(values)
    if is_wide:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        ticks = [10.0**exponent for exponent in range(low, high + 1)]
        scale = math.log10
    else:
        step = nice_step(max(values) / 4)
        ticks = [step * index for index in range(math.ceil(max(values) / step) + 1)]
        scale = float
    x_low, x_span = math.log10(places[0]), math.log10(places[-1]) - math.log10(places[0])
    y_low, y_span = scale(ticks[0]), scale(ticks[-1]) - scale(ticks[0])

    def across(x: float) -> float:
        return LEFT + INSET + (math.log10(x) - x_low) / x_span * (WIDTH - LEFT - RIGHT - 2 * INSET)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (scale(y) - y_low) / y_span * (HEIGHT - TOP - BOTTOM)

    middle = (HEIGHT - BOTTOM + TOP) / 2
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#333">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        text(WIDTH / 2, 20, title, 'text-anchor="middle" font-size="14"'),
        text((WIDTH + LEFT - RIGHT) / 2, HEIGHT - 10, x_label, 'text-anchor="middle"'),
        text(0, 0, y_label, f'text-anchor="middle" transform="translate(14 {middle}) rotate(-90)"'),
    ]
    for tick in ticks:
        out.append(rule(LEFT, down(tick), WIDTH - RIGHT, down(tick)))
        out.append(text(LEFT - 6, down(tick) + 4, short(tick), 'text-anchor="end"'))
    for place in places:
        out.append(rule(across(place), TOP, across(place), HEIGHT - BOTTOM))
        out.append(text(across(place), HEIGHT - BOTTOM + 16, x_text(place), 'text-anchor="middle"'))
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in line:
            mark = f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5" fill="{colour}">'
            out.append(f"{mark}<title>{name}: {short(y)} at {x_text(x)}</title></circle>")
            above = down(y) - 8 if index > 0 or len(lines) == 1 else down(y) + 18
            out.append(text(across(x), above, short(y), f'text-anchor="middle" font-size="11" fill="{colour}"'))
        if len(lines) > 1:
            out.append(text(LEFT + 8 + 120 * index, TOP - 8, name, f'font-weight="bold" fill="{colour}"'))
    return "\n".join([*out, "</svg>", ""])


def text(x: float, y: float, words: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{words}</text>'


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def nice_step(least: float) -> float:
    """The next of 1, 2 and 5, times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size_text(value: float) -> str:
    """A size in bytes as people write it."""
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= unit:
            return f"{value / unit:g} {name}B"
    return f"{value:g} B"
