"""The part of every written file that reads its weights."""

READING = '''
def read_tensors(path):
    """The tensors of a safetensors file by name."""
    content = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {name: _tensor(content, start, entry) for name, entry in header.items()}


def _tensor(content, start, entry):
    begin, end = entry["data_offsets"]
    dtype = TYPES[entry["dtype"]]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    count = (end - begin) // dtype.itemsize
    flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start + begin)
    return flat.view(entry["shape"]).clone()


TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
'''
