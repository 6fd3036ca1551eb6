"""What a program asks of TensorRT-LLM, found in its source text, and held to the description.

TensorRT-LLM has no types where it cannot be installed, so the kinds of values are told by names: of variables
(``NAMES``), of classes that are called, of what their methods give back. An attribute, a keyword, a key or a method
that the description does not have is a violation; so is a name that a version lacks, if it stands under no condition.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from tests.fakes.tensorrt_llm_contract import VERSIONS, Class, read_contract

NAMES = {
    "llm": "LLM",
    "output": "RequestOutput|CompletionOutput",
    "statistics": "IterationStats",
    "event": "KvCacheEvent",
    "data": "KvCacheEventData",
    "block": "StoredBlock",
    "library": "Library",
    "arguments": "LLM()",
    "call": "LLM.generate_async()",
}
"""Variables, parameters and attributes, with or without an underscore before, to what they hold. ``X()`` is a mapping
that is passed to X as keywords, ``a|b`` either. What means something else is to be called something else."""
NOT_ATTRIBUTES = ("library",)
"""Of other things, as attributes without an underscore: ``worker.library`` says which one another worker has."""
_MODULE = re.compile(r"tensorrt_llm(\.\w+)*")
_VARIABLE = re.compile(r"(TRTLLM|TLLM|tllm)_\w+")


_NOTHING = Class(kind="error")


@dataclass
class Usage:
    """Of one module."""

    violations: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """What was looked at and found in the description: ``RequestOutput.outputs``, ``LLM(model=)``, …"""
    imports: set[str] = field(default_factory=set)


def check_source(text: str, where: str = "source", library: frozenset[str] = frozenset()) -> Usage:
    """Look through one module. ``library`` are the names that the program's own ``Library`` class has besides."""
    checker = _Checker(where, library)
    checker.visit(ast.parse(text))
    return checker.usage


class _Checker(ast.NodeVisitor):
    def __init__(self, where: str, library: frozenset[str]) -> None:
        self.usage = Usage()
        self._contract = read_contract()
        self._where = where
        self._library = library
        self._local: list[dict[str, str]] = [{}]
        self._conditions = 0

    # ------------------------------------------------------------ where values come from

    def kind_of(self, node: ast.expr) -> str | None:
        """What a value is: a class, ``list[…]``, ``type:Class``, ``method:Class.name``, or None where unknown."""
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Await):
            return self._of_class(self.kind_of(node.value), "awaited")
        if isinstance(node, ast.Subscript):
            return self._element(self.kind_of(node.value), node.slice)
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.Attribute):
            known = self.kind_of(node.value)
            if known is not None or node.attr in NOT_ATTRIBUTES:
                return self._member(known, node.attr)
            return self._named(node.attr)
        if isinstance(node, ast.BoolOp):
            return next(filter(None, map(self.kind_of, node.values)), None)
        return None

    def _named(self, name: str) -> str | None:
        for scope in reversed(self._local):
            if name in scope:
                return scope[name] or None
        if name in self._contract and self._contract[name].kind != "result":
            return f"type:{name}"
        return NAMES.get(name.lstrip("_"))

    def _result(self, node: ast.Call) -> str | None:
        called = self.kind_of(node.func)
        if called is None:
            if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
                return self._element(self.kind_of(node.func.value), node.args[0])
            return None
        if called.startswith("type:"):
            return called.removeprefix("type:")
        if called.startswith("method:"):
            owner, _, name = called.removeprefix("method:").partition(".")
            return self._contract[owner].methods[name].returns
        return None

    def _member(self, kind: str | None, name: str) -> str | None:
        for each in (kind or "").split("|"):
            if each == "Library":
                return f"type:{name}" if name in self._contract else None
            described = self._contract.get(each)
            if described is None:
                continue
            if name in described.methods:
                return f"method:{each}.{name}"
            if (found := described.type_of(name)) is not None:
                return found.removesuffix(" | None")
        return None

    def _element(self, kind: str | None, index: ast.expr) -> str | None:
        if kind is None:
            return None
        if kind.startswith("list["):
            return kind[5:-1]
        if isinstance(index, ast.Constant) and isinstance(index.value, str):
            return self._member(kind, index.value)
        return None

    def _of_class(self, kind: str | None, which: str) -> str | None:
        described = self._contract.get(kind or "")
        return getattr(described, which) if described else None

    # ------------------------------------------------------------ what is done with them

    def visit_Import(self, node: ast.Import) -> None:
        self.usage.imports |= {alias.name for alias in node.names if _is_library(alias.name)}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not _is_library(node.module or ""):
            return
        self.usage.imports.add(node.module or "")
        for alias in node.names:
            described = self._contract.get(alias.name)
            places = described.places() if described is not None else {}
            if node.module not in places:
                self._violation(node, f"{node.module}.{alias.name} is not in the description")
            else:
                self._found(node, f"{node.module}.{alias.name}", places[node.module])
                self._local[-1][alias.asname or alias.name] = f"type:{alias.name}"

    def visit_Constant(self, node: ast.Constant) -> None:
        """Names of modules and variables, wherever they stand."""
        text = node.value
        if not isinstance(text, str):
            return
        if _MODULE.fullmatch(text) and text != "tensorrt_llm":
            self.usage.imports.add(text)
            known = {module for each in self._contract.values() for module in each.places()}
            if text not in known:
                self._violation(node, f"the module {text} is not in the description")
        if _VARIABLE.fullmatch(text) and text not in self._contract["environment"].fields:
            self._violation(node, f"the variable {text} is not in the description")

    def visit_List(self, node: ast.List | ast.Tuple) -> None:
        """A command line."""
        self.generic_visit(node)
        words = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        for command in (word for word in words if self._contract.get(word, _NOTHING).kind == "command"):
            for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
                if flag not in self._contract[command].fields:
                    self._violation(node, f"{command} {flag} is not in the description")
                else:
                    self.usage.used.add(f"{command} {flag}")

    visit_Tuple = visit_List

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        self._look_up(node, self.kind_of(node.value), node.attr)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            self._look_up_key(node, self.kind_of(node.value), node.slice.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant):
                self._look_up(node, self.kind_of(node.args[0]), str(name.value), asks=True)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "setdefault", "pop") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                self._look_up_key(node, self.kind_of(node.func.value), name.value)
        called = self.kind_of(node.func)
        if called is not None and called.startswith(("type:", "method:")):
            self._check_call(node, called.partition(":")[2])

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if node.value is not None:
            self._assign(node.target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._assign(node.target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(value, ast.Dict):
            for key in value.keys:
                if isinstance(key, ast.Constant):
                    self._look_up_key(key, self.kind_of(target), str(key.value))
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for each, part in zip(target.elts, value.elts, strict=True):
                self._assign(each, part)
        elif isinstance(target, ast.Name):
            kind = self.kind_of(value)
            if kind is not None or isinstance(value, ast.Attribute):
                self._local[-1][target.id] = kind or ""

    def visit_For(self, node: ast.For | ast.AsyncFor | ast.comprehension) -> None:
        kind = self.kind_of(node.iter)
        inner = kind[5:-1] if (kind or "").startswith("list[") else self._of_class(kind, "yields")
        if isinstance(node.target, ast.Name) and inner is not None:
            self._local[-1][node.target.id] = inner
        self.generic_visit(node)

    visit_AsyncFor = visit_For

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for each in node.generators:
            self.visit_For(each)
        self.generic_visit(node)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._local.append({})
        for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            if isinstance(each.annotation, ast.Name) and each.annotation.id in self._contract:
                self._local[-1][each.arg] = each.annotation.id
        self.generic_visit(node)
        self._local.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self.visit(node.test)
        self._conditions += 1
        for part in [*_as_list(node.body), *_as_list(node.orelse)]:
            self.visit(part)
        self._conditions -= 1

    visit_IfExp = visit_If

    # ------------------------------------------------------------ holding it to the description

    def _check_call(self, node: ast.Call, what: str) -> None:
        owner, _, method = what.partition(".")
        described = self._contract[owner]
        if method:
            allowed = dict.fromkeys(described.methods[method].parameters, VERSIONS)
        elif described.fields:
            allowed = {name: each.versions for name, each in described.fields.items()}
        else:
            return
        first_only = 1 if method or described.kind == "class" else 0
        if len(node.args) > first_only and not (described.positional and not method):
            self._violation(node, f"{what} is given {len(node.args)} arguments by position, whose order may change")
        for keyword in node.keywords:
            if keyword.arg is None:
                continue
            if keyword.arg not in allowed:
                self._violation(node, f"{what}({keyword.arg}=) is not in the description")
            else:
                self._found(node, f"{what}({keyword.arg}=)", allowed[keyword.arg])

    def _look_up_key(self, node: ast.AST, kind: str | None, name: str) -> None:
        if kind is not None and kind.endswith("()"):
            owner, _, method = kind.removesuffix("()").partition(".")
            described = self._contract[owner]
            allowed = described.methods[method].parameters if method else list(described.fields)
            if name not in allowed:
                self._violation(node, f"{kind[:-2]}({name}=) is not in the description")
            else:
                versions = VERSIONS if method else described.fields[name].versions
                self._found(node, f"{kind[:-2]}({name}=)", versions)
        elif any(each in self._contract and self._contract[each].kind == "json" for each in (kind or "").split("|")):
            self._look_up(node, kind, name)

    def _look_up(self, node: ast.AST, kind: str | None, name: str, *, asks: bool = False) -> None:
        if kind == "Library":
            if name not in self._contract and name not in self._library:
                self._violation(node, f"Library.{name} is no class of the description")
            return
        owners = [each for each in (kind or "").split("|") if each in self._contract]
        if not owners or name.startswith("__"):
            return
        if self._contract[owners[0]].kind == "json" and isinstance(node, ast.Attribute):
            return  # a method of the mapping itself
        for owner in owners:
            versions = _versions_of(self._contract[owner], name)
            if versions is not None:
                self._found(node, f"{owner}.{name}", VERSIONS if asks else versions)
                return
        self._violation(node, f"{'|'.join(owners)}.{name} is not in the description")

    def _found(self, node: ast.AST, what: str, versions: tuple[str, ...]) -> None:
        self.usage.used.add(what)
        if set(versions) != set(VERSIONS) and not self._conditions:
            self._violation(node, f"{what} is only in {', '.join(versions)}, and no condition asks for it")

    def _violation(self, node: ast.AST, why: str) -> None:
        self.usage.violations.append(f"{self._where}:{getattr(node, 'lineno', 0)}: {why}")


def _versions_of(described: Class, name: str) -> tuple[str, ...] | None:
    for found in (described.methods.get(name), described.fields.get(name), described.attributes.get(name)):
        if found is not None:
            return found.versions
    return None


def _as_list(part: list[ast.stmt] | ast.expr) -> list[ast.stmt] | list[ast.expr]:
    return part if isinstance(part, list) else [part]


def _is_library(module: str) -> bool:
    return module.partition(".")[0] == "tensorrt_llm"
