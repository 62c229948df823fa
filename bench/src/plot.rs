//! A curve of measurements as SVG: how a cost grows with the size of something.

use std::fmt::Write;

use crate::report::digits;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 54.0;

/// The colours of the lines: told apart by who can't see all colours, too.
const COLOURS: [&str; 4] = ["#0b6e99", "#b5541c", "#4d7c0f", "#7a3e9d"];

/// One line of a plot.
pub struct Line {
    /// What is measured.
    pub name: String,
    /// Size and cost, by size.
    pub points: Vec<(f64, f64)>,
}

/// Draws lines over a logarithmic axis of sizes and a linear one of costs, which begins at nothing.
pub fn svg(title: &str, sizes: &str, costs: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let (low, high) = all().fold((f64::INFINITY, 1.0_f64), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let top = all().fold(0.0_f64, |top, (_, y)| top.max(*y)).max(f64::MIN_POSITIVE) * 1.1;
    let span = (high / low).ln().max(f64::MIN_POSITIVE);
    let x = |size: f64| LEFT + (size / low).ln() / span * (WIDTH - LEFT - RIGHT);
    let y = |cost: f64| HEIGHT - BOTTOM - cost / top * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
    );
    for step in 0..=4 {
        let cost = top * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y(cost) + 4.0,
            digits(cost),
            y = y(cost),
        );
    }
    let mut at: Vec<f64> = all().map(|(size, _)| *size).collect();
    at.sort_unstable_by(f64::total_cmp);
    at.dedup();
    for size in at {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{size}</text>",
            x(size),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{sizes}</text>\
         <text x=\"{LEFT}\" y=\"38\" fill=\"#555\">{costs}</text>",
        (WIDTH + LEFT - RIGHT) / 2.0,
        HEIGHT - 12.0
    );
    for (i, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|(size, cost)| format!("{:.1},{:.1}", x(*size), y(*cost))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for point in &line.points {
            let _ =
                writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(point.0), y(point.1));
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
            WIDTH - RIGHT,
            20 + 16 * i,
            line.name
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measurement_has_its_point_within_the_picture() {
        let points = vec![(100.0, 2.0), (1000.0, 2.5), (10_000.0, 30.0)];
        let text = svg("t", "tags", "ms", &[Line { name: "a page".to_owned(), points }]);
        assert_eq!(text.matches("<circle").count(), 3);
        for part in text.split("cy=\"").skip(1) {
            let y: f64 = part.split('"').next().expect("a number").parse().expect("a number");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{text}");
        }
    }
}
