from gptj_batch.engine.label_tree import LabelTree

LABELS = ((5, 6, 7), (5, 6, 8, 9), (4,), (5,), (5, 6, 7), (2, 6))


def test_shared_beginnings_are_held_once_and_last_tokens_not_at_all() -> None:
    tree = LabelTree.build(LABELS)
    assert tree.token_ids[1:] == [5, 6, 8, 2]
    assert tree.parents == [-1, 0, 1, 2, 0]
    assert tree.depths == [0, 1, 2, 3, 1]
    assert tree.targets[1] == [(0, 5), (1, 6), (2, 8), (3, 9)]
    assert tree.targets[0] == tree.targets[4] == [(0, 5), (1, 6), (2, 7)]


def test_a_branch_sees_the_context_its_ancestors_and_itself() -> None:
    assert LabelTree.build(LABELS).seen(2).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_without_labels_there_is_no_branch() -> None:
    tree = LabelTree.build([])
    assert (tree.num_branch_tokens, tree.targets) == (0, [])
