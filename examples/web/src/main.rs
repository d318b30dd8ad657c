//! Builds the page and serves it, or checks it in a browser without a window.

mod tool {
    pub mod browser;
    pub mod build;
    pub mod check;
    pub mod server;
}

use std::process::ExitCode;

use clap::Parser;

/// The digits demo in the browser. Without arguments: builds the page and serves it
#[derive(Parser)]
struct Arguments {
    /// Run the library's tests and the page in Chromium without a window, and compare the numbers with this machine's adapter
    #[arg(long)]
    check: bool,

    /// With --check: all combinations of rule, type, format and control instead of a sample
    #[arg(long, requires = "check")]
    all: bool,

    /// The port of 127.0.0.1 to serve on; any free one with --check
    #[arg(long, default_value_t = 8080)]
    port: u16,

    /// Build the page into target/web/page and do nothing else
    #[arg(long, conflicts_with = "check")]
    build_only: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = tool::build::page()?;
    if arguments.check {
        return tool::check::run(&tool::build::suite()?, arguments.all);
    }
    if !arguments.build_only {
        let server = tool::server::Server::new(&folder, arguments.port)?;
        println!("The page is at {} until this program ends.", server.address());
        server.serve(|_, _| ())?;
    }
    Ok(ExitCode::SUCCESS)
}
