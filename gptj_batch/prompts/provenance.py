"""Provenance: which parts of what a template renders show the record's text, and which are the template's own.

Names are followed from the columns through loops, assignments and macros. What a template shows with a name that hangs
on a column is the record's; literal text, and what is shown of lists and texts that stand in the template itself, such
as worked examples, is the template's.
"""

from collections.abc import Collection, Iterator

from jinja2 import nodes

Scope = dict[str, bool]  # of names that the template binds: whether their values hang on a column


class Provenance:
    """What was found in a template's tree, before the tree is changed.

    hangs_on_record: whether a condition, a loop or the like makes of one record other text of the template's own than
    of another
    """

    def __init__(self, tree: nodes.Template, columns: Collection[str]) -> None:
        self._columns = columns
        self._shown: set[int] = set()
        self.hangs_on_record = False
        self._body(tree.body, {})

    def is_record_text(self, part: nodes.Expr) -> bool:
        """Tell whether this part of an output goes to the prompt as it is, and shows the record's text."""
        return id(part) in self._shown

    def _body(self, body: list[nodes.Node], scope: Scope) -> None:
        for node in body:
            self._statement(node, scope)

    def _statement(self, node: nodes.Node, scope: Scope) -> None:
        if isinstance(node, nodes.Output):
            self._shown |= {id(part) for part in node.nodes if self._hangs(part, scope)}
        elif isinstance(node, nodes.If):
            self._condition(node.test, scope)
            for body in (node.body, node.elif_, node.else_):
                self._body(list(body), scope)
        elif isinstance(node, nodes.For) and not node.recursive:
            self._for(node, scope)
        elif isinstance(node, nodes.With):
            values = {name: self._hangs(value, scope) for name, value in _bound(node.targets, node.values)}
            self._body(node.body, scope | values)
        elif isinstance(node, nodes.Assign):
            self._bind(node.target, self._hangs(node.node, scope), scope)
        elif isinstance(node, nodes.AssignBlock):
            self._bind(node.target, any(self._hangs(inner, scope) for inner in node.body), scope)
        elif isinstance(node, nodes.Macro):
            arguments = {argument.name: False for argument in node.args}
            scope[node.name] = any(self._hangs(inner, scope | arguments) for inner in node.body)
        elif isinstance(node, nodes.Block):
            self._body(node.body, dict(scope))
        else:  # blocks whose text is changed as a whole: nobody can say which part of it is whose
            self.hangs_on_record = True

    def _for(self, node: nodes.For, scope: Scope) -> None:
        self._condition(node.iter, scope)
        of_items = {name: self._hangs(node.iter, scope) for name in _names(node.target)}
        inner = scope | of_items | {"loop": False}
        if node.test is not None:
            self._condition(node.test, inner)
        self._body(node.body, inner)
        self._body(node.else_, dict(scope))

    def _condition(self, node: nodes.Node, scope: Scope) -> None:
        self.hangs_on_record |= self._hangs(node, scope)

    def _bind(self, target: nodes.Node, hangs: bool, scope: Scope) -> None:
        """Bind names for what follows; one that has hung on a column still may, by another branch."""
        for name in _names(target):
            scope[name] = hangs or scope.get(name, name in self._columns)

    def _hangs(self, node: nodes.Node, scope: Scope) -> bool:
        names = [node, *node.find_all(nodes.Name)] if isinstance(node, nodes.Name) else node.find_all(nodes.Name)
        return any(
            scope.get(name.name, name.name in self._columns)
            for name in names
            if isinstance(name, nodes.Name) and name.ctx == "load"
        )


def _names(target: nodes.Node) -> Iterator[str]:
    """Yield the names that an assignment to this target binds."""
    if isinstance(target, nodes.Name):
        yield target.name
    for name in target.find_all(nodes.Name):
        yield name.name


def _bound(targets: list[nodes.Expr], values: list[nodes.Expr]) -> Iterator[tuple[str, nodes.Expr]]:
    for target, value in zip(targets, values, strict=True):
        for name in _names(target):
            yield name, value
