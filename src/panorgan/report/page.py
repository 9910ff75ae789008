"""The end of a run: the report of one HTML file, the picture and the summary for the terminal.

A module describes a section of the page for the template of its name in ``templates/report``:
`run`, `results`, `examples` (cases, structures, lesions), `data`, `gates` and `fusion` (both for
labels), `training`, `efficiency`, `methods`. `inputs` reads students, gates and fused labels,
`pictures` says how many pictures there may be, `summary` is for the terminal.
"""

from collections.abc import Mapping
from typing import Any

from panorgan.cases.manifest import read_manifest
from panorgan.config.labels import load_labels
from panorgan.config.settings import load_config
from panorgan.io.tables import read_table
from panorgan.io.writing import replacing, write_text
from panorgan.report import drawing
from panorgan.report.data import draw_distributions
from panorgan.report.efficiency import describe_efficiency
from panorgan.report.examples import draw_examples, median_case, rank_cases
from panorgan.report.fusion import (
    SOURCES,
    count_specks,
    describe_doubtful,
    describe_fusion,
    telling_case,
)
from panorgan.report.gates import describe_gate, describe_pseudo_tumours, describe_rounds
from panorgan.report.inputs import SYNTHETIC, main_student, read_fusions, read_gates, read_students
from panorgan.report.methods import describe_methods
from panorgan.report.pages import cut, describe_data, render
from panorgan.report.pictures import Gallery, Scans, learnt_layers, prediction_of
from panorgan.report.results import (
    PUBLISHED,
    STATUS_TEXTS,
    case_table,
    class_table,
    compared_results,
    profile_table,
    score_plots,
    student_table,
    tumour_plot,
)
from panorgan.report.run import left_out, run_checksums, run_facts
from panorgan.report.show import compared_layers, draw_scan
from panorgan.report.summary import summary_text
from panorgan.report.training import describe_model, describe_selection, describe_teacher
from panorgan.run.layout import Layout
from panorgan.scoring.bootstrap import FEWEST
from panorgan.scoring.scores import interval_text, remarks


def write_report(
    config: Mapping[str, Any],
    paths: Layout,
    shards: Mapping[str, Any],
    files: Mapping[str, Any],
    *,
    report: str,
    picture: str,
    summary: str,
) -> None:
    """Write a run's report, its one picture and its summary.

    Parameters
    ----------
    config
        The config that the run was made with.
    paths
        Where the files of its students, gates and fused labels are.
    shards
        Names of the shards: ``training``, ``evaluated``, and those of all ``fused`` labels by name.
    files
        All others by name. The cases: manifest, excluded, suspects, corrected, repaired. The
        teacher: selection (a table a shard), teacher, teacher_table, teacher_scores,
        teacher_summary. The models of the students: students.
    report, picture, summary
        The files to write: HTML, PNG, plain text.
    """
    labels = load_labels(config["labels"])
    entries = read_manifest(files["manifest"], labels)
    settings = load_config(config)
    students = read_students(settings, paths, shards["evaluated"])
    main = main_student(students)
    arms = [student.arm for student in students]
    gates = read_gates(settings, paths, shards["training"], labels)
    fusions = read_fusions(settings, paths, shards["fused"])
    learnt = next(
        one for one in fusions if (one.round, one.labels) == (main.arm.round, main.arm.labels)
    )
    shown = main.shown
    ranking = rank_cases(main.scores[shown], labels)
    specks = count_specks(learnt, labels)
    fused = telling_case(learnt.composition)
    scans, gallery = Scans(entries), Gallery()
    listed = {
        name: cut(read_table(files[name]), files[name])
        for name in ("excluded", "suspects", "corrected", "repaired")
    }
    # In the order in which pictures are worth their room.
    pictures = {
        "plots": score_plots(main, shown, labels, gallery),
        "tumour_plot": tumour_plot(main, shown, labels, gallery),
        "data_plot": draw_distributions(entries, labels, gallery),
        "teacher": describe_teacher(files, gallery),
        "models": [
            describe_model(f"student {student.title}", student.model, gallery)
            for student in students
        ],
        "examples": draw_examples(main, ranking, labels, scans, gallery),
        "fused_picture": gallery.add(
            "fused cases",
            lambda: draw_scan(
                scans[fused], learnt_layers(fused, learnt.reader, labels), labels, kind="jpeg"
            ),
            f"Training case {fused}: CT, fused label and the source of each voxel in three planes",
        ),
        "doubtful": describe_doubtful(config, main, gates, learnt, labels, scans, gallery),
        "gates": [describe_gate(gate, arms, labels, scans, gallery) for gate in gates],
    }
    page = render(
        "report.html.j2",
        run=config["run"],
        synthetic=SYNTHETIC if config["phantom"] else "",
        status_texts=STATUS_TEXTS,
        titles={label.name: label.title for label in labels.labels},
        main=main.title,
        shown=shown,
        headline=main.summaries[shown] if main.scored else None,
        remarks=remarks(main.summaries[shown], labels),
        few=interval_text(main.summaries[shown]),
        fewest=FEWEST,
        facts=run_facts(config, files, entries),
        checksums=run_checksums(files, students),
        left_out=left_out(files, entries, main, gates, specks),
        compared=compared_results(students, [] if config["phantom"] else PUBLISHED),
        tables=[class_table(main, split, labels) for split in main.summaries],
        student_tables=[student_table(split, students, labels) for split in main.scored]
        if len(students) > 1
        else [],
        profiles=profile_table(main.summaries[shown]),
        overlap=config["evaluation"]["lesion_overlap"],
        lesions=[(split, main.summaries[split]["lesions"]) for split in main.scored],
        cases=cut(case_table(ranking, main, shown, labels), f"scores/…/{shown}/cases.csv"),
        data=describe_data(entries, labels),
        selection=describe_selection(files["selection"]),
        pseudo_tumours=describe_pseudo_tumours(gates, entries, labels),
        rounds=describe_rounds(config, gates),
        sources=[drawing.SOURCE_COLOURS[value] for value in SOURCES.values()],
        fusions=[describe_fusion(one, labels) for one in fusions],
        specks=specks,
        learnt=learnt.title,
        fused=scans.entry(fused),
        efficiency=[describe_efficiency(student) for student in students],
        methods=describe_methods(config, files, entries, main, labels),
        pictures_left_out=dict(gallery.left_out),
        **listed,
        **pictures,
    )
    # The median case; without scores any predicted one, without predictions a fused label.
    example = median_case(ranking) if ranking else next(iter(main.predictions.cases), fused)
    layers = (
        learnt_layers(fused, learnt.reader, labels)
        if example == fused
        else compared_layers(prediction_of(main, example), scans.reference(example), labels)
    )
    title = f"{config['run']}: {example}" + (f" ({SYNTHETIC})" if config["phantom"] else "")
    with replacing(picture) as temporary:
        temporary.write_bytes(
            draw_scan(scans[example], layers, labels, title=title, planes=("axial", "coronal"))
        )
    write_text(report, page)
    write_text(summary, summary_text(config, students, gates, labels, [report, picture]))
