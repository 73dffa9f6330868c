"""What can this machine do at most? Matrix products, reading memory, starting an operation: what other measurements are held against.

Shape letters: R rows, I in, O out.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.fast import has_onednn, onednn
from ..parts.splitting import in_a_line

# Qwen2.5-0.5B: (in, out) of a layer's q, k, v, o, gate, up and down, and of the head
QWEN_LAYERS = 24
QWEN_LAYER = ((896, 896), (896, 128), (896, 128), (896, 896), (896, 4864), (896, 4864), (4864, 896))
QWEN_HEAD = (896, 151_936)
SHAPES = tuple(dict.fromkeys((*QWEN_LAYER, QWEN_HEAD)))  # (in, out): of Qwen2.5-0.5B
ROWS = (1, 8, 32, 128, 512)
WIDEST = (896, 4864)  # the shape at which several rows are timed
LARGER_THAN_CACHES = 256 * 2**20  # bytes: the weights of one shape take so many, together
REPEATS = 3


def timed(call) -> float:
    """Seconds of one call, an accelerator's queue included."""
    started = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Of ``repeats`` calls, after one that warms up."""
    call()
    return statistics.median(timed(call) for _ in range(repeats))


def bytes_per_second(device: torch.device | str = "cpu", threads: int | None = None) -> float:
    """The speed at which a sum reads numbers that no cache holds, with so many threads, or as many as torch takes now."""
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        numbers = torch.full((LARGER_THAN_CACHES // 4,), 0.5, device=device)
        return LARGER_THAN_CACHES / median_seconds(numbers.sum)
    finally:
        torch.set_num_threads(usual)


def flops_per_second(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """The speed of a square matrix product in the faster of the library's and oneDNN's way: a practical limit of this machine."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    products = [lambda: a @ a]
    if a.device.type == "cpu" and dtype == torch.float32 and has_onednn():
        products.append(lambda: onednn(a, a))
    with torch.no_grad():
        return 2 * size**3 / min(timed(product) for product in products for _ in range(4))


def launch_seconds(device: torch.device | str = "cpu", count: int = 1000) -> float:
    """What it takes to start an operation: an addition of one number, of ``count`` in a row."""
    one = torch.ones(1, device=device)

    def additions() -> None:
        for _ in range(count):
            one + one

    return median_seconds(additions) / count


Way = tuple[Callable[[Tensor], object], Callable[[Tensor, object], Tensor]]  # the weight [O, I] made ready once, and x·Wᵀ with it


def ways(rows: int, device: torch.device | str = "cpu", compiled: Callable | None = None) -> dict[str, Way]:
    """The ways to multiply ``rows`` rows by a weight: name → ``Way``.

    ``linear`` is the library's. ``transposed`` is the same on a weight stored the other way round. ``onednn`` reads the weight as
    it lies there, ``prepacked`` in an order of oneDNN's own, which is a second copy of the weight. ``compiled`` multiplies and sums.
    """
    found: dict[str, Way] = {"linear": (as_it_is, F.linear), "transposed": (lambda weight: weight.T.contiguous(), torch.matmul)}
    if torch.device(device).type == "cpu" and has_onednn():
        found["onednn"] = as_it_is, onednn
        found["onednn transposed"] = (lambda weight: weight.T.contiguous().T), onednn
        found["prepacked"] = (lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight, rows)), onednn
    if compiled is not None and rows == 1:
        found["compiled"] = as_it_is, compiled
    return found


def as_it_is(weight: Tensor) -> Tensor:
    """For ways that need nothing made ready."""
    return weight


def multiply_and_sum(x_1I: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ of one row, as a compiler makes a single loop of it."""
    return (weight_OI * x_1I).sum(-1)


def compiled_product() -> tuple[Callable | None, float, str | None]:
    """``multiply_and_sum`` compiled, the seconds that this took, and why there is none where no compiler is."""
    started = time.perf_counter()
    try:
        compiled = torch.compile(multiply_and_sum, dynamic=False)
        compiled(torch.ones(1, 64), torch.ones(32, 64))
    except Exception as error:  # whatever torch, the compiler or a missing one raises
        return None, time.perf_counter() - started, in_a_line(error)
    return compiled, time.perf_counter() - started, None


@torch.inference_mode()
def products(shape: tuple[int, int], rows: int, device: torch.device | str = "cpu", compiled: Callable | None = None) -> dict[str, float]:
    """Seconds of one product of ``rows`` rows with a weight of ``shape`` (in, out), in each of ``ways``, with weights that no cache holds.

    ``sum`` is there beside them: what reading the weights alone takes.
    """
    width, out = shape
    count = max(1, LARGER_THAN_CACHES // (4 * width * out))
    weights = [torch.full((out, width), 0.5, device=device) for _ in range(count)]
    x_RI = torch.full((rows, width), 0.5, device=device)
    seconds = {"sum": median_seconds(lambda: [weight.sum() for weight in weights]) / count}
    for name, (ready, product) in ways(rows, device, compiled).items():
        made = [ready(weight) for weight in weights]
        seconds[name] = median_seconds(lambda made=made, product=product: [product(x_RI, weight) for weight in made]) / count
        del made
    return seconds


def measure(device: torch.device | str = "cpu", compile: bool = False, said: Callable[[str, str], None] = lambda *words: None) -> dict:
    """All limits, in float32, as they are written as JSON.

    ``one_row`` tells gigabytes of weights per second for each of ``SHAPES``, ``many_rows`` 10⁹ multiplications and additions per
    second for each number of ``ROWS`` at the shape ``WIDEST``. ``compile`` times the compiled product too; ``compile_seconds`` is
    what compiling took. ``said`` is told what runs, in English and Russian.
    """
    said("reading memory", "чтение памяти")
    threads = torch.get_num_threads()
    memory = [dict(threads=n, gb_per_s=bytes_per_second(device, n) / 1e9) for n in dict.fromkeys((1, threads))]
    result = dict(memory=memory, launch_us=1e6 * launch_seconds(device), compile_seconds=None, no_compiler=None)
    compiled = None
    if compile:
        said("compiling", "компиляция")
        compiled, result["compile_seconds"], result["no_compiler"] = compiled_product()
    result["one_row"], result["many_rows"] = [], []
    for width, out in SHAPES:
        said(f"one row, {width} → {out:,}", f"одна строка, {width} → {out:,}")
        seconds = products((width, out), 1, device, compiled)
        read = 4 * width * out / 1e9
        result["one_row"].append(dict(width=width, out=out, gb_per_s={way: read / own for way, own in seconds.items()}))
    width, out = WIDEST
    for rows in ROWS:
        said(f"rows: {rows}", f"строк: {rows}")
        seconds = products(WIDEST, rows, device)
        work = 2 * rows * width * out / 1e9
        result["many_rows"].append(dict(rows=rows, gflop_per_s={way: work / own for way, own in seconds.items() if way != "sum"}))
    return result
