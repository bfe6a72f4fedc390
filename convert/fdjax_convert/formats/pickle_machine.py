"""Reads pickles without running them: a machine for the opcodes, with limits.

Python's own unpickler imports what a pickle names, allocates what its numbers ask for
(a memo index of 2**28 takes gigabytes) and writes into the attributes of what it has
made. This one makes numbers, texts, lists, tuples, dicts and sets; a name becomes what
`find` gives for it, and only a `Callee` is ever called. Time and memory are
proportional to the length of the pickle.

The opcodes are those of the module `pickletools`, protocols 0 to 5, without the ones
that build instances (INST, OBJ, NEWOBJ) or refer to what is outside of the pickle.
"""

import gc
import pickle
import struct
from collections.abc import Callable
from typing import Any

from fdjax_convert.formats.values import Callee, WithState, brief

_MAX_INT_KEY = 1 << 63  # larger ones can be chosen so that their hashes are equal
_MAX_TUPLE_KEY = 16  # items; the hash of a tuple visits all that it is made of
_SIZED = (str, bytes, bytearray, list, tuple, dict, set)
_QUICK = (str, bytes, bool, float, complex, type(None), Callee)


class Machine:
    """Reads one pickle.

    Args:
        data: The pickle.
        find: What stands for a name, given (module, name); raises if it is not allowed.
        refer: What stands for a persistent id.
    """

    def __init__(
        self,
        data: bytes,
        find: Callable[[str, str], Any],
        refer: Callable[[Any], Any],
    ):
        self._data, self._find, self._refer = data, find, refer
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        # Items that calls may still copy or make. What is copied stands in the pickle,
        # unless it is taken from the memo again and again.
        self._left = len(data) + (1 << 16)

    def load(self) -> Any:
        """The object that the pickle describes.

        Raises:
            pickle.UnpicklingError: It is damaged, or asks for what is not allowed.
        """
        data, actions, stop = self._data, _ACTIONS, pickle.STOP[0]
        collects = gc.isenabled()
        gc.disable()  # it would look through all that is made, again and again
        try:
            while (code := data[self._position]) != stop:
                self._position += 1
                actions[code](self)
            return self._stack.pop()
        except KeyError:
            raise pickle.UnpicklingError(
                f"has the opcode {code:#04x}, which is not allowed"
            ) from None
        except IndexError:
            raise pickle.UnpicklingError("ends in the middle") from None
        finally:
            if collects:
                gc.enable()

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _discard(self) -> None:
        if self._stack or not self._marks:
            self._stack.pop()
        else:
            self._pop_mark()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # Bytes of the pickle.

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise pickle.UnpicklingError(f"ends in the middle of {count} bytes")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def _byte(self) -> int:
        value = self._data[self._position]
        self._position += 1
        return value

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._position)
        if end < 0:
            raise pickle.UnpicklingError("ends in the middle of a line")
        line = self._data[self._position : end]
        self._position = end + 1
        return line

    def _text_line(self) -> None:
        """STRING: a literal of Python 2, of plain letters only."""
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or b"\\" in line:
            raise pickle.UnpicklingError("has a text that cannot be read")
        self._push(line[1:-1].decode("ascii"))

    def _int_line(self) -> None:
        line = self._line()
        truth = {b"00": False, b"01": True}
        self._push(truth[line] if line in truth else int(line.removesuffix(b"L")))

    def _long(self, form: str) -> None:
        self._push(
            int.from_bytes(self._take(self._number(form)), "little", signed=True)
        )

    # Containers.

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _tuple1(self) -> None:
        self._stack[-1] = (self._stack[-1],)

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError(f"appends to {brief(target)}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError(f"sets items of {brief(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def _set_item(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set_items([key, value])

    def _dict(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _add_items(self) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if type(target) is not set:
            raise pickle.UnpicklingError(f"adds items to {brief(target)}")
        target.update(map(checked_key, items))

    # The memo.

    def _get(self, index: int) -> None:
        memo = self._memo
        if index not in memo:
            raise pickle.UnpicklingError(f"refers to an unknown object {index}")
        self._stack.append(memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    # Names and calls.

    def _global(self) -> None:
        module, name = self._line().decode("utf-8"), self._line().decode("utf-8")
        self._push(self._find(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise pickle.UnpicklingError(f"asks for {brief(module)}, {brief(name)}")
        self._push(self._find(module, name))

    def _persistent(self) -> None:
        self._push(self._refer(self._stack.pop()))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Callee or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"calls {brief(function)}")
        for one in arguments:
            if isinstance(one, _SIZED):
                self._spend(len(one))
        if function.cost:
            self._spend(function.cost)
        self._push(function(*arguments))

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("makes more than it holds")

    def _build(self) -> None:
        """BUILD: only containers may be given a state, and it is not kept."""
        self._stack.pop()
        if not isinstance(self._stack[-1], WithState):
            raise pickle.UnpicklingError(f"sets the state of {brief(self._stack[-1])}")


def checked_key(key: Any) -> Any:
    """A key of a dict, or an item of a set, that is quick to hash.

    Raises:
        pickle.UnpicklingError: It is not.
    """
    kind = type(key)
    if kind in _QUICK:
        return key
    if kind is tuple:
        if len(key) > _MAX_TUPLE_KEY or any(isinstance(part, tuple) for part in key):
            raise pickle.UnpicklingError("has a tuple of tuples, or a long one, as key")
        return tuple(map(checked_key, key))
    if kind is not int:
        raise pickle.UnpicklingError(f"has {brief(key)} as key")
    if not -_MAX_INT_KEY <= key < _MAX_INT_KEY:
        raise pickle.UnpicklingError("has an int of more than 64 bits as key")
    return key


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine._stack.append(value)


def _unpacked(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine._push(machine._number(form))


def _bytes(form: str, make: Callable[[bytes], Any]) -> Callable[[Machine], None]:
    """Bytes behind their count; the count is checked before anything is allocated."""
    return lambda machine: machine._push(make(machine._take(machine._number(form))))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _latin(data: bytes) -> str:
    return data.decode("latin1")


_ACTIONS: dict[int, Callable[[Machine], Any]] = {
    code[0]: action
    for code, action in (
        (pickle.PROTO, lambda m: m._take(1)),
        (pickle.FRAME, lambda m: m._take(8)),
        (pickle.MARK, Machine._mark),
        (pickle.POP, Machine._discard),
        (pickle.POP_MARK, Machine._pop_mark),
        (pickle.DUP, lambda m: m._push(m._stack[-1])),
        (pickle.NONE, _constant(None)),
        (pickle.NEWTRUE, _constant(True)),
        (pickle.NEWFALSE, _constant(False)),
        (pickle.INT, Machine._int_line),
        (pickle.LONG, Machine._int_line),
        (pickle.BININT, _unpacked("<i")),
        (pickle.BININT1, lambda m: m._stack.append(m._byte())),
        (pickle.BININT2, _unpacked("<H")),
        (pickle.LONG1, lambda m: m._long("<B")),
        (pickle.LONG4, lambda m: m._long("<I")),
        (pickle.FLOAT, lambda m: m._push(float(m._line()))),
        (pickle.BINFLOAT, _unpacked(">d")),
        (pickle.STRING, Machine._text_line),
        (pickle.BINSTRING, _bytes("<I", _latin)),
        (pickle.SHORT_BINSTRING, _bytes("<B", _latin)),
        (
            pickle.UNICODE,
            lambda m: m._push(m._line().decode("raw-unicode-escape")),
        ),
        (pickle.BINUNICODE, _bytes("<I", _decode)),
        (pickle.SHORT_BINUNICODE, _bytes("<B", _decode)),
        (pickle.BINUNICODE8, _bytes("<Q", _decode)),
        (pickle.BINBYTES, _bytes("<I", bytes)),
        (pickle.SHORT_BINBYTES, _bytes("<B", bytes)),
        (pickle.BINBYTES8, _bytes("<Q", bytes)),
        (pickle.BYTEARRAY8, _bytes("<Q", bytearray)),
        (pickle.EMPTY_LIST, lambda m: m._stack.append([])),
        (pickle.EMPTY_TUPLE, _constant(())),
        (pickle.EMPTY_DICT, lambda m: m._stack.append({})),
        (pickle.EMPTY_SET, lambda m: m._stack.append(set())),
        (pickle.LIST, lambda m: m._push(m._pop_mark())),
        (pickle.TUPLE, lambda m: m._push(tuple(m._pop_mark()))),
        (pickle.TUPLE1, Machine._tuple1),
        (pickle.TUPLE2, lambda m: m._tuple(2)),
        (pickle.TUPLE3, lambda m: m._tuple(3)),
        (pickle.DICT, Machine._dict),
        (pickle.APPEND, lambda m: m._append([m._stack.pop()])),
        (pickle.APPENDS, lambda m: m._append(m._pop_mark())),
        (pickle.SETITEM, Machine._set_item),
        (pickle.SETITEMS, lambda m: m._set_items(m._pop_mark())),
        (pickle.ADDITEMS, Machine._add_items),
        (pickle.GET, lambda m: m._get(int(m._line()))),
        (pickle.BINGET, lambda m: m._get(m._byte())),
        (pickle.LONG_BINGET, lambda m: m._get(m._number("<I"))),
        (pickle.PUT, lambda m: m._put(int(m._line()))),
        (pickle.BINPUT, lambda m: m._put(m._byte())),
        (pickle.LONG_BINPUT, lambda m: m._put(m._number("<I"))),
        (pickle.MEMOIZE, lambda m: m._put(len(m._memo))),
        (pickle.GLOBAL, Machine._global),
        (pickle.STACK_GLOBAL, Machine._stack_global),
        (pickle.BINPERSID, Machine._persistent),
        (pickle.REDUCE, Machine._reduce),
        (pickle.BUILD, Machine._build),
    )
}
