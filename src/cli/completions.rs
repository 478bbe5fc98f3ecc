use clap_complete::Shell;
use interp::Result;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: Args, command: &mut clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "interp", &mut script);
    super::output::print(&String::from_utf8_lossy(&script))
}
