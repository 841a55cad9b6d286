//! Fits the exponent of a growth to measured costs.

/// Returns the exponent `e` of the power law `cost = c * size^e` that fits the points `(size, cost)` best.
///
/// The method is the ordinary least-squares line through the points `(ln size, ln cost)`, all with the same weight; its
/// slope is the exponent:
///
/// ```text
/// e = sum((x - mean x) * (y - mean y)) / sum((x - mean x)^2)     with x = ln size, y = ln cost
/// ```
///
/// The logarithms make a factor of ten count the same at every size, so the largest size does not decide the result
/// alone. A cost per message with the exponent 0 is flat, so the time for the whole work is linear. The exponent 1 is a
/// cost that is linear in the size, which is quadratic for the whole work when the number of messages is the size. A
/// negative exponent is a cost that is shared by more messages or groups.
///
/// Points whose size or cost is not positive have no logarithm and are left out: a cost of zero is one below the
/// resolution of the clock that measured it. Without two different sizes there is no exponent.
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let usable =
        |&(size, cost): &(f64, f64)| size > 0.0 && cost > 0.0 && size.is_finite() && cost.is_finite();
    let logs: Vec<(f64, f64)> =
        points.iter().copied().filter(usable).map(|(size, cost)| (size.ln(), cost.ln())).collect();
    let (first, _) = *logs.first()?;
    if logs.iter().all(|&(x, _)| x == first) {
        return None;
    }
    let count = logs.len() as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    Some(covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::exponent;

    const SIZES: [f64; 4] = [1e3, 1e4, 1e5, 1e6];

    fn fitted(cost: impl Fn(f64) -> f64) -> Option<f64> {
        exponent(&SIZES.map(|size| (size, cost(size))))
    }

    #[test]
    fn exact_power_laws_give_their_exponents() {
        for wanted in [-1.0, 0.0, 0.5, 1.0, 2.0] {
            let found = fitted(|size| 7.5 * size.powf(wanted)).expect("four sizes");
            assert!((found - wanted).abs() < 1e-9, "{wanted}: {found}");
        }
    }

    #[test]
    fn sizes_need_not_be_evenly_spaced() {
        let points = [2.0, 8.0, 32.0, 33.0].map(|size: f64| (size, 0.3 * size.powf(1.5)));
        let found = exponent(&points).expect("four sizes");
        assert!((found - 1.5).abs() < 1e-9, "{found}");
    }

    #[test]
    fn the_fit_is_the_least_squares_line() {
        // The points (0, 0), (1, 0), (2, 3) in logarithms have the slope 1.5.
        let e = std::f64::consts::E;
        let found = exponent(&[(1.0, 1.0), (e, 1.0), (e * e, e.powi(3))]).expect("three sizes");
        assert!((found - 1.5).abs() < 1e-9, "{found}");
    }

    #[test]
    fn one_size_has_no_exponent() {
        assert_eq!(exponent(&[]), None);
        assert_eq!(exponent(&[(1000.0, 3.0)]), None);
        assert_eq!(exponent(&[(1000.0, 3.0), (1000.0, 4.0)]), None);
    }

    #[test]
    fn a_cost_below_the_resolution_is_left_out() {
        let found = exponent(&[(1.0, 0.0), (10.0, 20.0), (100.0, 200.0)]).expect("two sizes remain");
        assert!((found - 1.0).abs() < 1e-9, "{found}");
        assert_eq!(exponent(&[(1.0, 0.0), (10.0, 20.0)]), None);
    }
}
