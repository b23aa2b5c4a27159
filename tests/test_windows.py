"""Windows: the one with the most evidence, by hand and against all others; nested boxes; and a detector that puts wrong ones right."""
import pytest
import torch
import torch.nn.functional as F

from proxy_attention.windows import INNER_SHARE, WINDOW_CELLS, WindowDetector, best_windows, cell_descriptors, fit_detector
from proxy_attention.windows import on_grid, window_maps, window_means, window_side

CELLS = WINDOW_CELLS*WINDOW_CELLS


def box(m, n_cells):
    "First row and column, height and width of the brightest cells of a map, which fill a rectangle"
    at = m.flatten().topk(n_cells).indices
    ys,xs = at//WINDOW_CELLS, at % WINDOW_CELLS
    out = tuple(int(v) for v in (ys.min(), xs.min(), ys.max() - ys.min() + 1, xs.max() - xs.min() + 1))
    assert out[2]*out[3] == n_cells
    return out

@pytest.mark.parametrize('area,side', [(0.09, 7), (0.25, 12), (1/16, 6), (1e-6, 1), (1., 24)])
def test_side(area, side): assert window_side(area) == side

@pytest.mark.parametrize('area', [0.09, 0.25, 0.01, 1.])
def test_the_window_holds_the_most(area):
    "Against every other window of its size; wholly inside of the picture, and the best small window inside of it"
    g = torch.Generator().manual_seed(1)
    cells = torch.randn(8, WINDOW_CELLS, WINDOW_CELLS, generator=g)
    cells[:, 0, 0] += 5
    cells[3:, -1, -1] += 9
    side, inner = window_side(area), window_side(INNER_SHARE*area)
    sums = cells.unfold(1, side, 1).unfold(2, side, 1).sum((3, 4))
    assert torch.allclose(window_means(cells[:, None], area)[:, 0]*side*side, sums, atol=1e-4)
    for cell,m,s in zip(cells, window_maps(cells, area), sums):
        y,x,*_ = box(m, side*side)
        assert s[y, x] == pytest.approx(s.max().item(), abs=1e-3) and m.min() >= 0 and m.max() <= 1
        part = cell[y:y+side, x:x+side].unfold(0, inner, 1).unfold(1, inner, 1).sum((2, 3))
        y2,x2,*_ = box(m, inner*inner)
        assert part[y2 - y, x2 - x] == pytest.approx(part.max().item(), abs=1e-3)

def test_boxes_in_between_are_nested():
    cells = torch.zeros(1, WINDOW_CELLS, WINDOW_CELLS)
    cells[0, 4:16, 8:20] = 1
    cells[0, 4:10, 8:14] = 2
    m = window_maps(cells, 0.25)[0]
    assert box(m, 36) == (4, 8, 6, 6) and box(m, 81) == (4, 8, 9, 9) and box(m, 144) == (4, 8, 12, 12)
    assert m.min() == 0 and m[-1, 0] < m[4, 8] == 1

def test_area_changes_the_window():
    cells = torch.rand(4, WINDOW_CELLS, WINDOW_CELLS, generator=torch.Generator().manual_seed(0))
    assert (window_maps(cells, 0.04) != window_maps(cells, 0.25)).any()
    assert [torch.stack(best_windows(cells, a)).max() <= WINDOW_CELLS - window_side(a) for a in (0.04, 0.25)] == [True]*2

@pytest.mark.parametrize('size', [(24, 24), (48, 72), (12, 6)])
def test_the_grid_keeps_the_mean(size):
    m = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    assert on_grid(m).shape == (3, WINDOW_CELLS, WINDOW_CELLS)
    assert torch.allclose(on_grid(m).mean((1, 2)), m.mean((1, 2)), atol=1e-5)

def test_cells_are_described_by_means_and_maxima():
    fine, coarse = torch.zeros(1, 1, 48, 48), torch.zeros(1, 2, 12, 12)
    fine[0, 0, 0, 0], coarse[0, 1, 11, 11] = 4, 2
    out = cell_descriptors([fine, coarse])
    assert out.shape == (1, 6, WINDOW_CELLS, WINDOW_CELLS)
    assert out[0, :, 0, 0].tolist() == [1, 4, 0, 0, 0, 0], "the mean of the cell's four pixels, and their maximum"
    assert out[0, :, 23, 23].tolist() == out[0, :, 22, 22].tolist() == [0, 0, 0, 2, 0, 2]
    assert (out[0, 0] > 0).sum() == 1

def ridge(x, wanted):
    "By scikit-learn"
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler
    z = StandardScaler().fit(x)
    return z, Ridge(alpha=len(x), fit_intercept=True).fit(z.transform(x), wanted)

def test_a_detector_is_ridge_regression():
    g = torch.Generator().manual_seed(0)
    found, others, classes = torch.randn(30, 5, generator=g) + 1, torch.randn(30, 4, 5, generator=g), torch.arange(30) % 3
    cells = torch.randn(6, 5, 4, 4, generator=g)
    detector = fit_detector(found, others, classes, 3)
    wanted = torch.cat([torch.cat([F.one_hot(classes, 3), torch.ones(30, 1)], 1), torch.zeros(120, 4)])
    scaler, model = ridge(torch.cat([found, others.flatten(0, 1)]).numpy(), wanted.numpy())
    said = model.predict(scaler.transform(cells.permute(0, 2, 3, 1).reshape(-1, 5).numpy())) - model.intercept_
    said, asked = torch.from_numpy(said).view(6, 4, 4, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = said[torch.arange(6), :, :, asked] + said[..., -1]
    assert torch.allclose(detector.scores(cells, asked), expected.float(), atol=0.02)
    assert (detector.scores(cells, asked) != detector.scores(cells, (asked + 1) % 3)).any(), "each class has its own"

def test_constant_descriptors_count_nothing():
    found, others = torch.ones(8, 3), torch.ones(8, 2, 3)
    found[:, 0] = 2
    detector = fit_detector(found, others, torch.arange(8) % 2, 2)
    assert isinstance(detector, WindowDetector) and detector.weights.isfinite().all()
    cells = torch.ones(1, 3, 2, 2)
    cells[0, 0, 0, 1] = 2
    assert detector.scores(cells, torch.tensor([0])).flatten().argmax() == 1
