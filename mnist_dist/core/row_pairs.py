"""What can be seen of a loss that compares the rows of a batch with each other, as contrastive losses do.

Without virtual processes, a process has only its own rows to compare. In autograd's graph such a loss
has a product, or the distances, of two tensors that both have the batch's rows, or how far values spread
over them.
"""

from typing import Any

MANY = 20_000  # operations that are looked at, of a graph that may be larger
# Operations between a product and a parameter that is one of its factors.
OF_PARAMETERS = (
    "TBackward",
    "PermuteBackward",
    "ToCopyBackward",
    "ViewBackward",
    "UnsafeViewBackward",
    "UnsqueezeBackward",
    "ReshapeAliasBackward",
    "ExpandBackward",
    "WeightNormInterfaceBackward",
)
PARAMETER = "AccumulateGrad"
NORMALIZING = 3  # operations that may follow an expansion, as in cosine_similarity
ELEMENTWISE = ("MulBackward", "SubBackward", "DivBackward", "AddBackward")
SPREADS = ("StdBackward", "VarBackward", "StdMeanBackward", "VarMeanBackward")
COMPARES_ROWS = (
    "the loss compares the rows of a batch with each other, and each process has only its own rows, so the trained "
    "model would depend on the number of processes: pass virtual_processes to ExactAccelerator"
)


def compares_rows(last: Any, rows: int) -> bool:
    """Whether a loss compares the rows of a micro-batch with each other, as far as can be seen.

    Args:
        last: the last node of the loss's graph; None if it has none.
        rows: n, of the micro-batch.
    """
    if rows < 2:
        return False  # any size is a multiple of it
    seen: set[Any] = set()
    waiting = [last]
    while waiting and len(seen) < MANY:
        operation = waiting.pop()
        if operation is None or operation in seen:
            continue
        seen.add(operation)
        if is_of_pairs(operation, rows):
            return True
        waiting += [earlier for earlier, _ in operation.next_functions]
    return False


def is_of_pairs(operation: Any, rows: int) -> bool:
    """Whether an operation puts the values of different rows together."""
    name = operation.name()
    if name.startswith("MmBackward"):
        height, inner = operation._saved_self_sym_sizes
        _, width = operation._saved_mat2_sym_sizes
        is_of_rows = inner == rows or (height == width and height % rows == 0)
        return is_of_rows and has_activations(operation)
    if name.startswith("BmmBackward"):  # of einsum, too
        if not has_activations(operation):
            return False
        batch, height, inner = operation._saved_self.shape
        width = operation._saved_mat2.shape[2]
        is_of_rows = inner == rows or (height == width and height % rows == 0)
        return batch == 1 and is_of_rows
    if name.startswith("PdistBackward"):
        return len(operation._saved_self) % rows == 0 and has_activations(operation)
    if name.startswith(ELEMENTWISE):
        return is_of_two_views(operation, rows)
    if name.startswith("CdistBackward"):
        height, width = (len(tensor) for tensor in (operation._saved_x1, operation._saved_x2))
        return height == width and height % rows == 0 and has_activations(operation)
    if name.startswith(SPREADS):
        dimensions = operation._saved_dim
        if dimensions is not None and 0 not in dimensions:
            return False
        # Looked at last: within torch.utils.checkpoint, it is computed again when it is asked for.
        return has_activations(operation) and len(operation._saved_self) % rows == 0
    return False


def is_of_two_views(operation: Any, rows: int) -> bool:
    """Whether an operation broadcasts (n, 1, ...) and (1, n, ...), so that every row meets every other one."""
    sizes = [
        sizes_before_broadcast(earlier, number) for earlier, number in operation.next_functions
    ]
    if len(sizes) != 2 or any(len(each) < 2 for each in sizes):
        return False
    leading = {each[:2] for each in sizes}
    count = max(sizes[0][:2])
    return leading == {(count, 1), (1, count)} and count % rows == 0 and has_activations(operation)


def sizes_before_broadcast(operation: Any, number: int) -> tuple[int, ...]:
    """The sizes of an operation's result, before it was expanded to those of another tensor; () if not known.

    Args:
        operation: of autograd's graph; None if no gradient is needed.
        number: of its result.
    """
    if operation is None:
        return ()
    results = getattr(operation, "_input_metadata", ())
    sizes = tuple(results[number].shape) if number < len(results) else ()
    for _ in range(NORMALIZING):
        if operation.name().startswith("ExpandBackward"):
            return tuple(operation._saved_self_sym_sizes)
        if not operation.name().startswith(("DivBackward", "CloneBackward")):
            break
        operation = operation.next_functions[0][0]
        if operation is None:
            break
    return sizes


def has_activations(operation: Any) -> bool:
    """Whether all tensors that an operation takes are computed from others, and are not parameters."""
    taken = [earlier for earlier, _ in operation.next_functions]
    return all(each is not None and not is_parameter(each) for each in taken)


def is_parameter(operation: Any) -> bool:
    """Whether an operation's result is a parameter, perhaps transposed or in another precision."""
    while operation.name().rstrip("0123456789") in OF_PARAMETERS:
        operation = operation.next_functions[0][0]
        if operation is None:
            return False
    return PARAMETER in operation.name()
