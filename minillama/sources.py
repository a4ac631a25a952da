"""Which source texts a result depends on: all definitions that a function reaches.

The text of a definition (a function, a class or a constant at the top level of a
module) names other definitions: in its body, decorators, default arguments and base
classes. `Sources.reach` follows these names through the package by reading texts, and
`texts_behind` does it from any function, one of a notebook too. Nothing is listed by
hand, so nothing can be forgotten, and what is not named does not count. Where a module
is used as a whole (`getattr(world, name)`), all of it counts, and so do statements of a
module that define nothing. Objects that a function is handed are not followed: whoever
makes a key names them too.

Left out: what is found by other ways than names (`eval`, `importlib`, `import *`), code
of other packages, and modules that are edited after the first import of the package and
before their own. The text of a user's own file is read when a key first needs it.
"""

import ast
import dis
import functools
import inspect
import linecache
import sys
import sysconfig
import textwrap
import types
from pathlib import Path

import minillama

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
OTHERS = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platlib", "purelib")
)


class Sources:
    """The texts of a package's modules, and which definitions each definition uses.

    A place is (module, name); the name None stands for the whole module, and "" for
    those of its statements that define nothing.
    """

    def __init__(self, texts, package="minillama"):
        """`texts`: module name -> text; "__init__" is the package itself."""
        self.texts, self.package = texts, package
        # Each module and each place is read once, when it is first needed.
        self._read, self._known = {}, {}

    def reach(self, starts):
        """Return the texts of all places that `starts` use, themselves included."""
        found, waiting = {}, list(starts)
        while waiting:
            module, name = place = waiting.pop()
            if name is None:
                waiting += [(module, each) for each in self._module(module)[0]]
            elif place not in found:
                found[place], used = self._place(module, name)
                waiting += [(module, ""), *used]
        return found

    def _place(self, module, name):
        """Read a place: (its text, the places that it names)."""
        if (module, name) not in self._known:
            statements = self._module(module)[0][name]
            lines = self.texts[module].splitlines()
            text = "\n".join(_lines_of(statement, lines) for statement in statements)
            used = [x for each in statements for x in self._used_by(module, each)]
            self._known[module, name] = text, used
        return self._known[module, name]

    def member(self, module, name):
        """Return the place of an attribute of a module, None where it is not ours."""
        definitions, imported = self._module(module)
        if name in definitions:
            return module, name
        if module == "__init__" and name in self.texts:
            return name, None
        if name not in imported:
            return None
        module, name = imported[name]
        return (module, None) if name is None else self.member(module, name)

    def _module(self, module):
        """Read a module: (name -> its statements, imported name -> its place)."""
        if module not in self._read:
            definitions, imported = {"": []}, {}
            for statement in ast.parse(self.texts[module]).body:
                imports = [n for n in ast.walk(statement) if isinstance(n, IMPORTS)]
                names = _names_bound_by(statement)
                if not isinstance(statement, DEFINITIONS):
                    imported |= self._imported(imports)
                if not names and not _says_nothing(statement):
                    names = [""]
                for name in names:
                    definitions.setdefault(name, []).append(statement)
            self._read[module] = definitions, imported
        return self._read[module]

    def _imported(self, imports):
        """Map the names that import statements bind to places of this package."""
        places = {}
        for node in imports:
            for alias in node.names:
                if isinstance(node, ast.Import):
                    path = alias.name.split(".")
                    if path[0] == self.package:
                        whole = path[1] if alias.asname and path[1:] else "__init__"
                        places[alias.asname or path[0]] = whole, None
                    continue
                path = (node.module or "").split(".")
                if node.level:
                    path = [self.package, *filter(None, path)]
                if path[0] != self.package:
                    continue
                place = path[1] if path[1:] else "__init__", alias.name
                if place[0] == "__init__" and alias.name in self.texts:
                    place = alias.name, None
                if place[0] in self.texts:
                    places[alias.asname or alias.name] = place
        return places

    def _used_by(self, module, statement):
        """Yield the places that a statement of a module names."""
        nodes = list(ast.walk(statement))
        local = self._imported([node for node in nodes if isinstance(node, IMPORTS)])

        def place_of(node):
            if isinstance(node, ast.Name):
                if node.id in local:
                    owner, name = local[node.id]
                    return self.member(owner, name) if name else (owner, None)
                return self.member(module, node.id)
            if isinstance(node, ast.Attribute):
                owner = place_of(node.value)
                return self.member(owner[0], node.attr) if _is_module(owner) else None
            return None

        passed = set()
        for node in nodes:  # from the outside inwards: `world.TASKS` before `world`
            if isinstance(node, ast.Name | ast.Attribute) and node not in passed:
                place = place_of(node)
                if place:
                    yield place
                if place and isinstance(node, ast.Attribute):
                    passed |= set(ast.walk(node))


def _lines_of(statement, lines):
    """The lines of a module that hold a statement, its decorators included."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(node.lineno for node in decorators)])
    return "\n".join(lines[first - 1 : statement.end_lineno])


def _is_module(place):
    return place is not None and place[1] is None


def _names_bound_by(statement):
    """The names that a statement at the top level of a module defines, sorted."""
    if isinstance(statement, DEFINITIONS):
        return [statement.name]
    nodes = list(ast.walk(statement))
    targets = [n.target for n in nodes if isinstance(n, ast.comprehension)]
    inner = {each for target in targets for each in ast.walk(target)}
    names = {n.name for n in nodes if isinstance(n, DEFINITIONS)}
    names |= {
        n.id
        for n in nodes
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n not in inner
    }
    return sorted(names)


def _says_nothing(statement):
    """Whether a statement is a text, such as a docstring, or an import."""
    is_text = isinstance(statement, ast.Expr) and isinstance(
        statement.value, ast.Constant
    )
    return is_text or isinstance(statement, IMPORTS)


OURS = Sources(minillama.TEXTS)


def texts_behind(roots, describe):
    """Return all that functions, classes or modules use: sorted pairs [name, text].

    What belongs to the package is followed by its texts. The rest, such as a notebook's
    own functions, is followed through the global names in its compiled code;
    `describe(value, name)` says of a constant among them what it is, in JSON values,
    and which functions and classes it brings along.
    """
    found, starts, seen, waiting = [], [], [], list(roots)
    while waiting:
        root = waiting.pop()
        if any(root is each for each in seen):
            continue
        seen.append(root)
        if isinstance(root, types.ModuleType):
            if _of_the_package(root):
                starts += _members(root, ())
            elif _is_the_users(root.__name__):
                found.append([root.__name__, text_of(root)])
                waiting += [x for x in vars(root).values() if is_code(x)]
            continue
        waiting += _wrapped_by(root)
        module, name = _home(root)
        if module.startswith(f"{OURS.package}.") and (
            place := OURS.member(module.partition(".")[2], name.split(".")[0])
        ):
            starts.append(place)
        elif _is_the_users(module):
            found.append([f"{module}.{name}", text_of(root)])
            waiting += root.__bases__ if isinstance(root, type) else []
            for used, value, attributes in _names_used_by(root):
                if isinstance(value, types.ModuleType) and _of_the_package(value):
                    starts += _members(value, attributes)
                elif isinstance(value, types.ModuleType) or is_code(value):
                    waiting.append(value)
                else:
                    used = f"{used} in {module}.{name}"
                    told, code = describe(value, used)
                    found.append([used, told])
                    waiting += code
    texts = OURS.reach(starts).items()
    found += [[".".join((OURS.package, *place)), text] for place, text in texts]
    return sorted(found, key=repr)


@functools.cache
def text_of(root):
    """Return the text of a function, class or module that is the user's, read once."""
    in_a_cell = isinstance(root, type) and _text_in_a_cell(root.__name__)
    if in_a_cell and root.__module__ == "__main__":
        return in_a_cell
    return textwrap.dedent(inspect.getsource(root))


def _text_in_a_cell(name):
    """The text of a class in the last cell of a notebook that defines it, else None.

    Python before 3.13 remembers where a function was written, but not where a class.
    """
    cells = [file for file in linecache.cache if not Path(file).exists()]
    for cell in reversed(cells):
        text = "".join(linecache.getlines(cell))
        if f"class {name}" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return ast.get_source_segment(text, node)
    return None


def _wrapped_by(root):
    """A list of the function that a decorator put another one around, or of none."""
    attributes = getattr(root, "__dict__", {})
    return [attributes["__wrapped__"]] if "__wrapped__" in attributes else []


def is_code(value):
    """Whether a value is a function or a class, and no object that has a state."""
    if isinstance(value, types.MethodType):
        return False
    return isinstance(value, type) or callable(value) and "__qualname__" in dir(value)


def _home(root):
    """Where the code of a function or class was written: (module, qualified name)."""
    if isinstance(root, types.FunctionType):
        return root.__globals__["__name__"], root.__code__.co_qualname
    if isinstance(root, type):
        return root.__module__, root.__qualname__
    return "builtins", ""


def _is_the_users(module):
    """Whether a module is the user's own: a notebook, a file, but nothing installed."""
    if module == "__main__":
        return True
    package, _, name = module.partition(".")
    if package == OURS.package and name in OURS.texts:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    folders = Path(file).resolve().parents if file else OTHERS
    return not any(folder in folders for folder in OTHERS)


def _names_used_by(root):
    """Yield (name, value, attributes looked up) for all that code refers to."""
    functions = [root]
    if isinstance(root, type):
        scope = vars(sys.modules[root.__module__])
        names, attributes = _names_outside_methods(root)
        yield from ((n, scope[n], attributes) for n in sorted(names & scope.keys()))
        functions = [f for member in vars(root).values() for f in _functions_in(member)]
    for function in functions:
        # Not those that a decorator made, `dataclass` for one: it is named already.
        made = function.__code__.co_filename == "<string>"
        if made or not _is_the_users(_home(function)[0]):
            continue
        scope = dict(function.__globals__)
        captured = zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        )
        names, attributes = _names_in(function.__code__)
        for name, cell in captured:
            scope[name] = cell.cell_contents
            names.add(name)
        yield from ((n, scope[n], attributes) for n in sorted(names & scope.keys()))
        for i, value in enumerate(function.__defaults__ or ()):
            yield f"default {i}", value, attributes
        for name, value in sorted((function.__kwdefaults__ or {}).items()):
            yield f"default of {name}", value, attributes


def _functions_in(member):
    """The functions inside a member of a class: methods, also decorated, properties."""
    parts = [member]
    if isinstance(member, property):
        parts = [member.fget, member.fset, member.fdel]
    elif isinstance(member, staticmethod | classmethod):
        parts = [member.__func__]
    for part in parts:
        if isinstance(part, types.FunctionType):
            yield part
        for wrapped in _wrapped_by(part):
            yield from _functions_in(wrapped)


def _names_outside_methods(cls):
    """The names and attributes in a class's text but for the bodies of its methods."""
    names, attributes = set(), set()
    waiting = [ast.parse(text_of(cls))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            attributes.add(node.attr)
        body = node.body if isinstance(node, DEFINITIONS[:2]) else []
        waiting += [each for each in ast.iter_child_nodes(node) if each not in body]
    return names, attributes


def _names_in(code):
    """The global names and the attributes that compiled code refers to, two sets."""
    names, attributes = set(), set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_names, inner_attributes = _names_in(constant)
            names, attributes = names | inner_names, attributes | inner_attributes
    return names, attributes


def _of_the_package(module):
    package, _, name = module.__name__.partition(".")
    return package == OURS.package and (name or "__init__") in OURS.texts


def _members(module, attributes):
    """The places in a module of ours among `attributes`, or all of it."""
    name = module.__name__.partition(".")[2] or "__init__"
    places = [OURS.member(name, each) for each in sorted(attributes)]
    return list(filter(None, places)) or [(name, None)]
