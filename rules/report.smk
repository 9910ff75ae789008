# The report: one HTML file with scores, overlays, what the labels are made of, learning curves and
# a methods text.


judged = [
    paths.pseudo_labels(kind, number, shard)
    for kind, number in run.judged
    for shard in run.training
]
evaluated = [*run.validation, *run.test]
teacher_model = paths.teacher_model(settings.teacher.seed)


rule write_report:
    input:
        manifest=paths.case_list,
        excluded=paths.excluded,
        suspects=paths.suspects,
        corrected=paths.corrected,
        repaired=paths.repaired,
        selection=run.each(paths.teacher_labels(), run.training, ".tsv"),
        teacher_scores=paths.teacher_scores(settings.teacher.seed, "cases.csv"),
        teacher_summary=paths.teacher_scores(settings.teacher.seed, "summary.json"),
        teacher=ancient(teacher_model),
        teacher_table=f"{teacher_model}.tsv",
        decisions=[paths.gate("decisions.tsv", *origin) for origin in run.origins],
        gate_cases=[paths.gate("cases.tsv", *origin) for origin in run.origins],
        gate_summaries=[paths.gate("summary.json", *origin) for origin in run.origins],
        pseudo_labels=[f"{place}.tsv" for place in judged],
        pseudo_label_folders=ancient(judged),
        composition=of_fusions(".composition.tsv"),
        conflicts=of_fusions(".conflicts.tsv"),
        specks=of_fusions(".specks.tsv", run.first_stages),
        fused=of_fusions(".tsv"),
        fused_folders=ancient(of_fusions("")),
        students=ancient(of_students(paths.student_model)),
        student_tables=of_students(paths.student_model, ".tsv"),
        scores=of_students(partial(paths.results, "cases.csv"), each=EVALUATED),
        lesions=of_students(partial(paths.results, "lesions.csv"), each=EVALUATED),
        summaries=of_students(partial(paths.results, "summary.json"), each=EVALUATED),
        predictions=of_students(paths.predictions, ".tsv", evaluated),
        prediction_folders=ancient(of_students(paths.predictions, each=evaluated)),
        efficiency=of_students(paths.predictions, ".efficiency.tsv", evaluated),
    output:
        report=report(paths.report, caption="captions/report.rst", category="Report"),
        picture=report(paths.picture, caption="captions/overlay.rst", category="Report"),
        summary=report(paths.summary, caption="captions/summary.rst", category="Report"),
    log:
        "<logs>/write_report.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["report"],
        config=settings.model_dump(),
        shards=dict(
            training=run.training,
            evaluated=evaluated,
            fused={name: run.fused_shards(name) for _, name in fused_labels(settings)},
        ),
        classes=run.classes,
        rules=run.sources,
    script:
        "../scripts/write_report.py"
