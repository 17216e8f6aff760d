"""What is drawn of a run."""

from reported import report_run

from transloom.jobs.runs import report


def test_the_curves_have_the_averaged_models_bleu_once_there_is_one(tmp_path, monkeypatch):
    drawn = []
    draw = report.draw_curves

    def note(points, path, *about):
        drawn.append({point.key for point in points})
        return draw(points, path, *about)

    monkeypatch.setattr(report, "draw_curves", note)
    report_run(tmp_path, "one", 0.9)
    assert "averaged/validation_bleu" in drawn[-1] and "averaged/validation_bleu" not in drawn[0]
