"""ONNX files with weights and activations of 8 bits, by ONNX Runtime's own quantizer."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compresskit.storage.atomic import atomic_write
from compresskit.storage.exported.batches import Batch, Read, arguments_of
from compresskit.storage.exported.onnx import read_onnx, tell, without_log


def write_quantised(source: Path, batches: Iterable[Batch], path: Path, told: dict[str, Any]) -> Read:
    """The float32 network of `source`, quantised statically (QDQ). Returns the network of the file read back.

    Weights are int8, with a scale for each output channel and zero at 0; activations uint8, with a scale and a zero for
    each tensor, by the least and greatest values that it takes on `batches`. A softmax that the network returns stays
    float32: in steps of 1/255 small probabilities are 0, and their loss is infinite. told: what the file tells of
    itself.
    """
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    names = [value.name for value in InferenceSession(source).get_inputs()]

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            return {name: one.numpy() for name, one in zip(names, arguments_of(batch), strict=True)}

    with TemporaryDirectory() as folder, without_log():
        made = Path(folder) / "net.onnx"
        quantize_static(
            source, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=_returned_softmax(source),
        )  # fmt: skip
        tell(made, told)
        with atomic_write(path) as temporary:
            temporary.write_bytes(made.read_bytes())
    return read_onnx(path)


def _returned_softmax(source: Path) -> list[str]:
    """Names of the nodes that make the outputs by a softmax."""
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    outputs = {value.name for value in graph.output}
    return [node.name for node in graph.node if node.op_type == "Softmax" and outputs.intersection(node.output)]
