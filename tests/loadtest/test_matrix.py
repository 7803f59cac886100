from bertron_loadtest.matrix import Cell, cells


def test_one_number_is_varied_at_a_time():
    found = list(cells(4096))
    assert len(found) == 5 + 10 + 6
    assert found[0] == Cell("tokens", 20, 2048, 1)
    assert [cell.value for cell in found[5:15]] == [1, 4, 8, 16, 64, 256, 512, 1024, 2048, 4096]
    assert found[-1] == Cell("clients", 40, 2048, 32)


def test_a_slow_machine_leaves_large_calls_out():
    found = list(cells(64))
    assert {cell.texts_a_call for cell in found} == {1, 4, 8, 16, 64}
    assert {cell.texts_a_call for cell in found if cell.varied != "texts_a_call"} == {64}
